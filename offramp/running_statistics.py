"""What batch norms keep of the batches that they have seen: running statistics, and the number of batches."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COUNT = "num_batches_tracked"
KEPT = ("running_mean", "running_var", COUNT)


def batch_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """PyTorch's own batch norms with running statistics, by name; none whose `forward` is another one."""
    return {
        name: part
        for name, part in net.named_modules()
        if isinstance(part, _BatchNorm)
        and type(part).forward is _BatchNorm.forward
        and "forward" not in vars(part)
        and all(isinstance(getattr(part, kept), Tensor) for kept in KEPT)
    }


@contextmanager
def counted_together(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """In this context, these batch norms count their batches by one operation at its end, not by one each.

    On a GPU, each operation is a kernel. Batch norms with `momentum` None use the number: it is theirs to count.
    """
    waiting: list[Tensor] = []
    deferred = [norm for norm in norms if norm.training and norm.momentum is not None]
    for norm in deferred:
        vars(norm)[COUNT] = _Deferred(getattr(norm, COUNT), waiting)
    try:
        yield
    finally:
        for norm in deferred:
            del vars(norm)[COUNT]
    if waiting:
        counts = {id(count): count for count in waiting}
        torch._foreach_add_(list(counts.values()), list(Counter(map(id, waiting)).values()))


class _Deferred:
    """A number of batches that is counted later: `add_` puts it on a list."""

    def __init__(self, count: Tensor, waiting: list[Tensor]) -> None:
        self.count, self.waiting = count, waiting

    def add_(self, one: int) -> None:
        """Count one batch later."""
        self.waiting.append(self.count)
