"""Sums and means over all processes of a data-parallel run; identities if there is only one.

Data-parallel training AVERAGES gradients over processes. A loss that is a mean over the batch needs nothing; one that
is a sum over the batch must be scaled by the number of processes, and a statistic of the batch must be reduced.
Where the last batch of an epoch does not divide evenly, each process counts by its samples (`weighing`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def processes() -> int:
    """How many processes train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _OfThread(local):  # unlike a ContextVar, torch.compile reads it
    weight = 1.0


_of_thread = _OfThread()


@contextmanager
def weighing(weight: float) -> Iterator[None]:
    """In this context, losses are weighted by `weight`: the samples of this process / their mean over the processes.

    Other threads, which may train another network, are not affected.
    """
    before, _of_thread.weight = _of_thread.weight, weight
    try:
        yield
    finally:
        _of_thread.weight = before


def weight() -> float:
    """The factor of a loss that is a mean over this process's samples, before gradients are averaged."""
    return _of_thread.weight


def for_sums() -> float:
    """The factor of a loss that is a SUM over this process's samples, in addition to `weight`."""
    return processes() / weight()


def weight_of(samples: int, like: Tensor) -> float:
    """The weight of a share with this many samples among all processes' shares; `like` has the communicating device."""
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
    """Mean over the processes of a batch statistic, weighted by their shares; detached."""
    return _total(value if weight() == 1.0 else value * weight()) / processes()


def least(value: int, like: Tensor) -> int:
    """The smallest value over all processes; `like` is a tensor on the communicating device."""
    if processes() == 1:
        return value
    smallest = torch.tensor(value, device=like.device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


def gathered(value: Float[Tensor, "E B"]) -> tuple[Float[Tensor, "E N"], int]:
    """The columns of all processes side by side, detached, and the index of this process's first; sizes may differ."""
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
