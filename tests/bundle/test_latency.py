"""Milliseconds of every segment in a foreign runtime: one for each choice of where it begins and ends."""

import importlib.util
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from offramp.bundle.latency import segment_ms
from offramp.early_exit.policy import ExitPolicy
from offramp.measure.latency import spans_as_run
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
        exported = self.much(state)
        return exported, exported.mean((2, 3), keepdim=True)


class First(nn.Module):
    """The first of two maps."""

    def forward(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return state[0] + state[1]


class Chained(Branch):
    """Adds what the exit before it said."""

    chained_exit = True

    def forward(self, state: Any, carry: tuple[torch.Tensor, ...] = ()) -> Any:
        logits, features, pooled, _ = super().forward(state)
        logits = logits + carry[0] if carry else logits
        return logits, features, pooled, (logits,)


CASES = list(product(RUNTIMES, [1, 8], [Branch, Chained]))
QUICK = ("openvino", 8, Chained)
"""All combinations are for the full grid, since each exports a network; ONNX Runtime has its test below."""


@pytest.mark.parametrize(
    ("runtime", "batch", "branch"),
    [
        pytest.param(
            runtime.values[0], batch, branch,
            marks=[*runtime.marks, *([] if (runtime.values[0], batch, branch) == QUICK else [pytest.mark.full])],
        )
        for runtime, batch, branch in CASES
    ],
)  # fmt: skip
def test_every_segment_that_a_policy_can_ask_for_has_its_price(runtime: str, batch: int, branch: type[Branch]) -> None:
    stages = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), Pair()]
    heads = [branch(nn.Identity(), Head(24, 5)), branch(nn.Identity(), Head(24, 5)), branch(First(), Head(24, 5))]
    policy = ExitPolicy(thresholds=(0.5,) * 3, enabled=(True,) * 3, answer="geometric")
    exported: list[int] = []
    ms = segment_ms(
        MultiExitNet(stages, heads), (3, 16, 16), batch, policy, runtime, threads=1, rounds=5, advance=exported.append
    )
    assert exported == [1, 1, 1]
    assert ms.keys() == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)} and min(ms.values()) > 0
    assert ms[2, 2] > ms[1, 1] and ms[0, 2] > ms[0, 1]  # where the work is
    assert spans_as_run(ms, (True, False, True)) == [ms[0, 0], ms[1, 2]]
    assert spans_as_run(ms, (False, False, True)) == [ms[0, 2]]


def test_one_exit_has_one_price() -> None:
    net = MultiExitNet([nn.Conv2d(3, 4, 3)], [Branch(nn.Identity(), Head(4, 5))])
    ms = segment_ms(net, (3, 8, 8), 2, ExitPolicy(thresholds=(0.0,), enabled=(True,)), "onnx", rounds=1)
    assert ms.keys() == {(0, 0)} and spans_as_run(ms, (True,)) == [ms[0, 0]]
