"""Sums and means over all processes of a data-parallel run; plain identities where there is only one.

Data-parallel training AVERAGES gradients over processes. A loss that is a mean over the batch needs nothing; one that
is a sum over the batch must be scaled by the number of processes, and a statistic of the batch must be reduced.
Where the last batch of an epoch does not divide evenly, each process counts by its samples (`weighing`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


_weight = 1.0


@contextmanager
def weighing(weight: float) -> Iterator[None]:
    """Within, this process's share of the batch counts `weight` times: its samples over the mean of all processes."""
    global _weight
    before, _weight = _weight, weight
    try:
        yield
    finally:
        _weight = before


def weight() -> float:
    """What a loss that is a mean over this process's samples is multiplied with before gradients are averaged."""
    return _weight


def for_sums() -> float:
    """What a loss that is a SUM over this process's samples is multiplied with, `weight` not yet counted."""
    return processes() / _weight


def weight_of(samples: int, like: Tensor) -> float:
    """The weight of a share with this many samples, asked of all processes; `like` says on which device they talk."""
    if processes() == 1:
        return 1.0
    mean = _total(torch.tensor(float(samples), device=like.device)) / processes()
    return samples / float(mean)


def _total(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    total = value.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total


def global_mean(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Mean over the processes of a batch statistic, by their weights; detached."""
    return _total(value if _weight == 1.0 else value * _weight) / processes()


def least(value: int, like: Tensor) -> int:
    """The smallest of the processes' values; `like` says on which device they talk."""
    if processes() == 1:
        return value
    found = torch.tensor(value, device=like.device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def gathered(value: Float[Tensor, "E B"]) -> tuple[Float[Tensor, "E N"], int]:
    """The columns of all processes side by side, detached, and where this one's begin; shares may differ in size."""
    if processes() == 1:
        return value.detach(), 0
    size = value.new_tensor([value.shape[1]])
    sizes = [torch.empty_like(size) for _ in range(processes())]
    dist.all_gather(sizes, size)
    counts = [int(count) for count in sizes]
    padded = value.new_zeros(value.shape[0], max(counts))
    padded[:, : value.shape[1]] = value.detach()
    shares = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(shares, padded)
    rows = [share[:, :count] for share, count in zip(shares, counts, strict=True)]
    return torch.cat(rows, 1), sum(counts[: dist.get_rank()])


def global_sum(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Sum over the processes. Its gradient, averaged over the processes, is the gradient of that sum."""
    if processes() == 1:
        return value
    scaled = value * for_sums()
    # The value of the whole sum, the gradient of our own share of it.
    return torch.add(scaled, _total(value) - scaled.detach())
