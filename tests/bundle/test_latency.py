"""Milliseconds of stages and branches in a foreign runtime: of the right shape, and where the work is."""

import importlib.util

import pytest
import torch
from torch import nn

from offramp.adapt.policy import ExitPolicy
from offramp.bundle.latency import piece_ms
from offramp.measure.cost import as_run
from offramp.net import Branch, Head, MultiExitNet

pytest.importorskip("onnxscript")
RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"no {package}"))
    for name, package in {"onnx": "onnxruntime", "openvino": "openvino"}.items()
]


class Pair(nn.Module):
    """A stage with much work, whose state is two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.much = nn.Sequential(*(nn.Conv2d(24, 24, 3, padding=1) for _ in range(8)))

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = self.much(state)
        return made, made.mean((2, 3), keepdim=True)


class First(nn.Module):
    """The first of two maps."""

    def forward(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return state[0] + state[1]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 8])
def test_where_the_work_is_the_time_goes(runtime: str, batch: int) -> None:
    stages = [nn.Conv2d(3, 24, 3, padding=1), Pair()]
    net = MultiExitNet(stages, [Branch(nn.Identity(), Head(24, 5)), Branch(First(), Head(24, 5))])
    policy = ExitPolicy(thresholds=(0.5, 0.5), enabled=(True, True), answer="geometric")
    exported: list[int] = []
    pieces = piece_ms(net, (3, 16, 16), batch, policy, runtime, threads=1, rounds=5, advance=exported.append)
    assert exported == [1, 1] and pieces.chained == (False, False)
    assert len(pieces.stages) == len(pieces.branches) == 2
    assert min(pieces.stages) > 0 and min(pieces.branches) >= 0
    assert pieces.stages[1] > pieces.stages[0]
    assert as_run(pieces, (False, True)) == [sum(pieces.stages) + pieces.branches[1]]


def test_an_unknown_runtime_is_refused() -> None:
    net = MultiExitNet([nn.Conv2d(3, 4, 3)], [Branch(nn.Identity(), Head(4, 5))])
    with pytest.raises(ValueError, match="unknown runtime 'tensorrt': there are onnx, openvino"):
        piece_ms(net, (3, 8, 8), 1, ExitPolicy(thresholds=(0.0,), enabled=(True,)), "tensorrt")
