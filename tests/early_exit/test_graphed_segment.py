"""Segments, and policies with them, on batches that are filled up to a power of two: early exit does not notice."""

from typing import Any

import pytest
import torch
from torch import nn

from offramp.early_exit.graphed_policy import GraphedExits
from offramp.early_exit.graphed_segment import GraphedSegment
from offramp.early_exit.policy import SCORES, ExitPolicy
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
            values, expected = answer(graphed, policy, inputs), answer(plain, policy, inputs)
            assert torch.equal(values.exit, expected.exit)
            torch.testing.assert_close(values.logits, expected.logits)
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


class Chained(nn.Module):
    """A branch that adds what the exit before said."""

    chained_exit = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = Head(width, 4)

    def forward(self, state: torch.Tensor, carry: Any = ()) -> Any:
        logits, feature, maps = self.head(state)
        logits = logits + carry[0] if carry else logits
        return logits, feature, maps, (logits,)


RULES = [*((score, "exit") for score in SCORES if score != "learned"), ("confidence", "geometric"), ("patience", "sum")]


@pytest.mark.parametrize(("score", "answer_"), RULES)
@pytest.mark.parametrize("chained", [False, True])
def test_the_policy_within_is_that_of_the_loop(score: str, answer_: str, chained: bool) -> None:
    net = network()
    if chained:
        net = MultiExitNet(list(net.stages), [Chained(width) for width in (6, 6, 8)]).eval()
    enabled, chosen = (True, True, True), segments(net)
    some = torch.randn(64, 1, 6, 6)
    with torch.inference_mode():
        scores = ExitPolicy(thresholds=(0.0,) * 3, enabled=enabled, score=score).step({}, chosen[0](some, ())[2], 0)[2]
    policy = ExitPolicy(
        thresholds=(float(scores.median()),) * 2 + (0.0,), enabled=enabled, score=score, answer=answer_, patience=2
    )
    graphed, taken = GraphedExits(chosen, policy, CPU), set[int]()
    with torch.inference_mode():
        for samples in (13, 16, 1, 5, 13):
            inputs = torch.randn(samples, 1, 6, 6).contiguous(memory_format=torch.channels_last)
            values, expected = graphed(inputs), answer(chosen, policy, inputs)
            assert torch.equal(values.exit, expected.exit)
            torch.testing.assert_close((values.logits, values.score), (expected.logits, expected.score))
            taken |= set(expected.exit.tolist())
    assert len(taken) > 1 or score == "patience"  # whose exits agree here
    assert {size for _, place, size in graphed.steps if place == 0} == {16, 1, 8}


def test_a_step_alone_copies_its_batch_in_and_leaves_the_next_answers_as_they_are() -> None:
    chosen, some = segments(network()), torch.randn(5, 1, 6, 6)
    policy = ExitPolicy(thresholds=(0.3, 0.3, 0.0), enabled=(True,) * 3)
    graphed = GraphedExits(chosen, policy, CPU)
    with torch.inference_mode():
        graphed(some)
        expected = answer(chosen, policy, some)
        step = graphed.steps[8, 0, 8]
        timed = graphed.alone(0, 5, some)
        step.inputs[0].zero_()
        assert timed() == int((expected.exit > 0).sum())
        torch.testing.assert_close(step.inputs[0][:5], some)
        assert torch.equal(graphed(some).exit, expected.exit)


def test_answers_are_the_caller_s_own_and_no_segment_runs_for_nobody() -> None:
    calls: list[int] = []

    def segment(state: Any, carry: Any) -> Any:
        calls.append(len(state))
        return state, carry, state

    policy = ExitPolicy(thresholds=(0.9, 0.9, 0.0), enabled=(True, False, True))
    graphed = GraphedExits([segment, segment], policy, CPU)
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    first = graphed(sure)
    calls.clear()
    second = graphed(-sure)
    assert calls == [2] and first.logits.tolist() == sure.tolist() and second.exit.tolist() == [0, 0]
    calls.clear()
    assert graphed(torch.tensor([[9.0, 0.0], [1.0, 1.0]])).exit.tolist() == [0, 2] and calls[-1] == 1
    with pytest.raises(ValueError, match="the policy enables 2 exits, but there are 1 segments"):
        GraphedExits([segment], policy, CPU)
