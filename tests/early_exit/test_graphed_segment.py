"""Segments on batches that are filled up to a power of two: early exit does not notice."""

from typing import Any

import pytest
import torch
from torch import nn

from offramp.early_exit.graphed_segment import GraphedSegment
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.net import Branch, Head, MultiExitNet, segments

CPU = torch.device("cpu")


def network() -> MultiExitNet:
    torch.manual_seed(3)
    widths = ((1, 6), (6, 6), (6, 8))
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
    branches = [Branch(nn.Identity(), Head(width, 4)) for _, width in widths]
    return MultiExitNet(stages, branches).eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("answer_", ["exit", "geometric"])
def test_early_exit_is_that_of_the_segments(answer_: str) -> None:
    net = network()
    plain = segments(net)
    with torch.inference_mode():  # half of the samples leave at the first exit
        middle = float(plain[0](torch.randn(64, 1, 6, 6), ())[2].softmax(1).amax(1).median())
    policy = ExitPolicy(thresholds=(middle, middle, 0.0), enabled=(True,) * 3, answer=answer_)
    graphed = [GraphedSegment(segment, CPU) for segment in plain]
    taken: set[int] = set()
    with torch.inference_mode():
        for samples in (13, 16, 1, 5, 13):
            inputs = torch.randn(samples, 1, 6, 6).contiguous(memory_format=torch.channels_last)
            given, expected = answer(graphed, policy, inputs), answer(plain, policy, inputs)
            assert torch.equal(given.exit, expected.exit)
            torch.testing.assert_close(given.logits, expected.logits)
            taken |= set(expected.exit.tolist())
    assert len(taken) > 1
    assert set(graphed[0].sizes) == {16, 1, 8}


def test_states_of_several_tensors_and_a_carry() -> None:
    def segment(state: Any, carry: Any) -> Any:
        first, second = state
        return (first + second, second), (carry[0] + 1,), first[:, :2]

    state, carry = (torch.arange(6.0).view(3, 2), torch.ones(3, 2)), (torch.zeros(3),)
    onward, handed, logits = GraphedSegment(segment, CPU)(state, carry)
    assert [part.tolist() for part in onward] == [(state[0] + 1).tolist(), state[1].tolist()]
    assert handed[0].tolist() == [1.0] * 3 and logits.shape == (3, 2)
