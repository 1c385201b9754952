"""What a policy was fitted for is checked on logits that differ a little from those it was fitted on."""

from typing import Any

import numpy as np
import pytest

from offramp.bundle.read import open_bundle
from offramp.bundle.recertify import exported_trace, recertified
from offramp.early_exit.calibrate import calibrate
from offramp.early_exit.certify import certify
from offramp.early_exit.policy import ExitPolicy

N, CLASSES = 600, 5
COSTS = [2, 3, 5]
CHOICES = {(True, True, True): COSTS, (False, False, True): [9]}


def trace(noise: float = 0.0) -> tuple[Any, Any]:
    """Three exits, each better than the one before; `noise` is what another precision changes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, N)
    logits = rng.normal(size=(3, N, CLASSES))
    for exit, strength in enumerate((2.0, 3.0, 5.0)):
        logits[exit, np.arange(N), labels] += strength
    return (logits + noise * np.random.default_rng(1).normal(size=logits.shape)).astype(np.float32), labels


def fitted(**goal: float) -> ExitPolicy:
    return calibrate(*trace(), segment_costs={(True, True, True): COSTS}, **goal).policy


def test_a_policy_that_still_reaches_its_goal_ships_as_it_is() -> None:
    logits, labels = trace()
    for goal in ({"macs": 6.0}, {"accuracy": 0.9}):
        policy = fitted(**{"budget" if name == "macs" else name: value for name, value in goal.items()})
        shipped = recertified(policy, {"goal": goal}, logits, labels, COSTS)
        assert shipped.policy == policy and not shipped.about["refitted"] and shipped.about["goal"] == goal
        assert shipped.about["achieved"]["cost"] <= goal.get("macs", 10) and shipped.about["samples"] == N


def test_a_policy_that_no_longer_reaches_its_goal_is_fitted_again() -> None:
    policy = fitted(accuracy=0.9)
    logits, labels = trace(0.6)
    shipped = recertified(policy, {"goal": {"accuracy": 0.9}}, logits, labels, COSTS)
    assert shipped.about["refitted"] and shipped.policy != policy
    assert shipped.about["achieved"]["accuracy"] >= 0.9
    budget = fitted(budget=5.0)
    shipped = recertified(budget, {"goal": {"macs": 5.0}}, 0.7 * trace()[0], labels, COSTS)  # less sure
    assert shipped.about["refitted"] and shipped.about["achieved"]["cost"] <= 5


def test_a_goal_that_cannot_be_reached_any_more_is_an_error() -> None:
    policy = fitted(accuracy=0.9)
    with pytest.raises(ValueError, match=r"in float32, no longer reach the goal \(accuracy 0\.9\): .*calibrate again"):
        recertified(policy, {"goal": {"accuracy": 0.9}}, *trace(4.0), COSTS)


def test_a_drop_is_measured_from_the_exported_plain_network() -> None:
    logits, labels = trace(0.3)
    plain = (logits[-1].argmax(1) == labels).mean()
    goal = {"max_drop": 0.02, "accuracy": 1.0}  # the accuracy is that of another precision
    shipped = recertified(fitted(accuracy=0.9), {"goal": goal}, logits, labels, COSTS)
    assert shipped.about["achieved"]["accuracy"] >= plain - 0.02


def test_a_certificate_is_made_anew_or_refused() -> None:
    logits, labels = trace()
    exported = certify(logits, labels, segment_costs=CHOICES, risk=0.05)
    assert exported.outcome.policy.enabled == (True, True, True)
    origin = {"goal": {"risk": 0.05, "delta": None}, "plain": {"accuracy": 0.9, "macs": 9}}
    same = recertified(exported.outcome.policy, origin, logits, labels, COSTS)
    assert same.policy == exported.outcome.policy and same.about["certificate"]["lost"] == exported.lost
    other = recertified(exported.outcome.policy, origin, *trace(0.3), COSTS)
    assert other.about["certificate"]["certified"] and other.about["refitted"]
    broken = logits.copy()
    broken[0] = -20 * broken[0]  # sure, and wrong
    with pytest.raises(ValueError, match=r"no longer reach the goal \(risk 0\.05\)"):
        recertified(exported.outcome.policy, origin, broken, labels, COSTS)


def test_without_a_goal_nothing_is_changed() -> None:
    policy = fitted(accuracy=0.9)
    assert recertified(policy, {}, *trace(1.0), COSTS).policy == policy


def test_the_trace_is_that_of_the_exported_segments(exported: Any) -> None:
    bundle, cal = open_bundle(exported.folder), exported.data.splits["cal"]
    logits, labels = exported_trace(bundle, cal)
    assert logits.shape == (bundle.manifest.exits, len(cal), 10) and np.array_equal(labels, cal.labels)
    result = bundle.answer(bundle.manifest.preprocessing.normalise(cal.source.batch(cal.indices[:7])))
    carry: dict[str, Any] = {}
    for part in bundle.manifest.parts:
        carry, answer, _, _ = exported.policy.step(carry, logits[part.exit, :7], part.exit)
        rows = result.exit == part.exit
        np.testing.assert_allclose(result.logits[rows], answer[rows], atol=1e-4)
