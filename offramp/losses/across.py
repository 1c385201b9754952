"""Sums and means over all processes of a data-parallel run; plain identities where there is only one.

Data-parallel training AVERAGES gradients over processes. A loss that is a mean over the batch needs nothing; one that
is a sum over the batch must be scaled by the number of processes, and a statistic of the batch must be reduced.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _total(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    total = value.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total


def global_mean(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Mean over the processes of a batch statistic; detached."""
    return _total(value) / processes()


def global_sum(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Sum over the processes. Its gradient, averaged over the processes, is the gradient of that sum."""
    if processes() == 1:
        return value
    scaled = value * processes()
    # The value of the whole sum, the gradient of our own share of it.
    return torch.add(scaled, _total(value) - scaled.detach())
