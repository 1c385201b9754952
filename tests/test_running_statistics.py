"""Batch norms that count their batches together: the same numbers by one operation; some count their own."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.running_statistics import batch_norms, counted_together


class Operations(TorchDispatchMode):
    """Counts the operations on whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        first = args[0][0] if args and isinstance(args[0], (list, tuple)) else args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.int64:
            self.counted[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """Batch norms that run once, twice, never, frozen, without statistics, and with their own use of the number."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.never, self.frozen = (nn.BatchNorm1d(3) for _ in range(4))
        self.without = nn.BatchNorm1d(3, track_running_stats=False)
        self.reads = nn.BatchNorm1d(3, momentum=None)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        for part in (self.once, self.twice, self.twice, self.frozen, self.without, self.reads):
            inputs = part(inputs)
        return inputs


def test_the_numbers_are_the_same_by_one_operation() -> None:
    torch.manual_seed(0)
    net = Net()
    net.frozen.eval()
    other, norms = copy.deepcopy(net), tuple(batch_norms(net).values())
    assert len(norms) == 5
    for _ in range(3):
        inputs = torch.randn(4, 3)
        with Operations() as operations, counted_together(norms):
            outputs = net(inputs)
        assert operations.counted["_foreach_add_"] == 1 and operations.counted["add_"] == 1  # that of `reads`
        assert torch.equal(outputs, other(inputs))
        assert all("num_batches_tracked" not in vars(norm) for norm in norms)
    state, expected = net.state_dict(), other.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in state)
    assert [int(norm.num_batches_tracked) for norm in norms] == [3, 6, 0, 0, 3]


def test_an_error_leaves_batch_norms_as_they_were() -> None:
    net = Net()
    norms = tuple(batch_norms(net).values())
    try:
        with counted_together(norms):
            net(torch.randn(4, 5))
    except (RuntimeError, ValueError):
        pass
    net(torch.randn(4, 3))
    assert int(net.once.num_batches_tracked) == 1
