"""Milliseconds of stages and branches: positive, of the right shape, put together as segments are run."""

import pytest
import torch
from torch import nn

from offramp.early_exit.policy import ExitPolicy
from offramp.measure.cost import as_run
from offramp.measure.graph_latency import graph_ms
from offramp.measure.latency import piece_ms, spans_as_run
from offramp.net import Branch, Head, MultiExitNet


class Slow(nn.Module):
    """Much more work than anything else here."""

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        square = torch.ones(600, 600)
        for _ in range(4):
            square = square @ square / 600
        return state * square[0, 0]


def network() -> MultiExitNet:
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), nn.Sequential(Slow(), nn.Conv2d(4, 4, 3, padding=1))]
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(4, 5)) for _ in stages]).eval()


def test_where_the_work_is_the_time_goes() -> None:
    policy = ExitPolicy(thresholds=(0.5, 0.5), enabled=(True, True))
    with torch.inference_mode():
        pieces = piece_ms(network(), torch.randn(4, 3, 8, 8), policy, rounds=3)
    assert len(pieces.stages) == len(pieces.branches) == 2 and pieces.chained == (False, False)
    assert min(*pieces.stages, *pieces.branches) > 0
    assert pieces.stages[1] > pieces.stages[0]
    assert as_run(pieces) == [pieces.stages[0] + pieces.branches[0], pieces.stages[1] + pieces.branches[1]]
    whole = pieces.stages[0] + pieces.stages[1] + pieces.branches[1]
    assert as_run(pieces, (False, True)) == pytest.approx([whole])


def test_segments_as_graphs_have_a_price_for_every_choice_of_exits() -> None:
    policy = ExitPolicy(thresholds=(0.5, 0.5), enabled=(True, True), answer="geometric")
    with torch.inference_mode():
        ms = graph_ms(network(), torch.randn(3, 3, 8, 8), policy, rounds=3)
    assert set(ms) == {(0, 0), (1, 1), (0, 1)} and min(ms.values()) > 0
    assert ms[0, 0] < min(ms[1, 1], ms[0, 1])
    assert spans_as_run(ms, (True, True)) == [ms[0, 0], ms[1, 1]] and spans_as_run(ms, (False, True)) == [ms[0, 1]]
