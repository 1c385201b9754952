"""Leaving early on a split: what is reported is what happened, and what calibration promised."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.early_exit.calibrate import calibrate, choices
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.measure import cost
from offramp.measure.early_exit_eval import leave_early
from offramp.measure.trace import trace
from offramp.net import Branch, Head, MultiExitNet
from offramp.outputs import Batch, Carry

SHAPE, CLASSES, N = (3, 8, 8), 5, 150
ALL = (True, True, True)


class Chained(Branch):
    """A branch that adds the logits of the exit before."""

    chained_exit = True

    def forward(self, state: Tensor, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        logits, feature, features, _ = super().forward(state, carry)
        logits = logits + carry[0] if carry else logits
        return logits, feature, features, (logits,)


def network(seed: int = 0, branch: type[Branch] = Branch) -> MultiExitNet:
    torch.manual_seed(seed)
    stages = [
        nn.Sequential(nn.Conv2d(enters, leaves, 3, stride=2, padding=1), nn.ReLU())
        for enters, leaves in ((3, 8), (8, 8), (8, 16))
    ]
    heads = [Head(8, CLASSES), Head(8, CLASSES), Head(16, CLASSES)]
    net = MultiExitNet(stages, [branch(nn.Identity(), head) for head in heads])
    with torch.no_grad():
        for head in heads:
            head.classifier.weight.mul_(12)
    return net.eval()


def samples(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, *SHAPE, generator=draw)
    return Batch(inputs, torch.randint(0, CLASSES, (N,), generator=draw), torch.arange(N))


def batches(all_of_them: Batch, size: int) -> Iterator[Batch]:
    for rows in torch.arange(len(all_of_them.ids)).split(size):
        yield Batch(*(part[rows] for part in all_of_them))


def measured(net: MultiExitNet, policy: ExitPolicy, size: int = 32, timed: bool = False, **more: Any) -> dict[str, Any]:
    """The report on batches of this size; they are timed only if asked for, which takes eight times as long."""
    with torch.inference_mode():
        return leave_early(net, policy, batches(samples(), size), SHAPE, size if timed else N + 1, **more)


@pytest.mark.parametrize("branch", [Branch, Chained])
@pytest.mark.parametrize("fraction", [0.75, *(pytest.param(more, marks=pytest.mark.full) for more in (0.85, 1.0))])
def test_the_operations_as_run_are_those_that_calibration_promised(branch: type[Branch], fraction: float) -> None:
    for seed in range(3):
        net = network(seed, branch)
        traced = trace(net, batches(samples(), 64), "cal")
        assert traced.labels is not None
        prices = {enabled: cost.segment_macs(net, SHAPE, enabled) for enabled in choices(3)}
        budget = fraction * prices[False, False, True][0]
        result = calibrate(traced.logits.numpy(), traced.labels.numpy(), segment_costs=prices, budget=budget)
        for size in (7, 150):
            ran = measured(net, result.policy, size)
            assert ran["macs"] == result.cost  # exactly
            assert ran["shares"] == pytest.approx(result.shares)
            assert ran["accuracy"] == pytest.approx(result.accuracy)


def test_where_nobody_leaves_early_it_is_the_plain_network() -> None:
    net, everyone = network(), samples()
    plainly = (net(everyone.inputs).logits[-1].argmax(1) == everyone.labels).float().mean().item()
    for enabled in ((False, False, True), ALL):
        ran = measured(net, ExitPolicy(thresholds=(NEVER,) * 3, enabled=enabled))
        assert ran["shares"] == [0.0, 0.0, 1.0]
        assert ran["accuracy"] == ran["plain"]["accuracy"] == pytest.approx(plainly)
        assert ran["plain"]["macs"] == cost.macs(net, SHAPE)[-1]
        assert ran["macs"] == (cost.macs_cumulative(net, SHAPE)[-1] if enabled == ALL else ran["plain"]["macs"])


def test_where_all_leave_at_once_it_costs_the_first_exit() -> None:
    net = network()
    ran = measured(net, ExitPolicy(thresholds=(-1.0, 0.0, 0.0), enabled=ALL))
    assert (ran["shares"], ran["macs"]) == ([1.0, 0.0, 0.0], cost.macs(net, SHAPE)[0])
    assert ran["policy"] == {"thresholds": (-1.0, 0.0, 0.0), "enabled": ALL, "score": "confidence"}


def test_a_disabled_exit_takes_nobody_and_costs_nothing() -> None:
    net = network()
    ran = measured(net, ExitPolicy(thresholds=(-1.0, -1.0, 0.0), enabled=(False, True, True)))
    assert (ran["shares"], ran["macs"]) == ([0.0, 1.0, 0.0], cost.macs(net, SHAPE)[1])


def test_times_are_of_whole_batches_only() -> None:
    policy = ExitPolicy(thresholds=(0.5,) * 3, enabled=ALL)
    ran = measured(network(), policy, 64, timed=True)
    assert ran["batch_size"] == 64 and ran["ms"] > 0 and ran["plain"]["ms"] > 0 and ran["speedup"] > 0
    none = measured(network(), policy, 64)
    assert (none["ms"], none["plain"]["ms"], none["speedup"]) == (None, None, None)
    assert none["shares"] == ran["shares"]


def test_progress_is_told_in_samples() -> None:
    told: list[int] = []
    measured(network(), ExitPolicy(thresholds=(0.5,) * 3, enabled=ALL), 64, advance=told.append)
    assert told == [64, 64, 22]


def test_there_must_be_something_to_answer() -> None:
    with pytest.raises(ValueError, match="there are no samples to evaluate"):
        leave_early(network(), ExitPolicy(thresholds=(0.5,) * 3, enabled=ALL), [], SHAPE, 32)


def test_a_policy_for_another_number_of_exits() -> None:
    with pytest.raises(ValueError, match="must hold 3 flags"):
        measured(network(), ExitPolicy(thresholds=(0.5,) * 2, enabled=(True, True)))
