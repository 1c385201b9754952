"""The geometric rule against MSDNet's worked example, and the choice of a policy against trying everything by hand."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from offramp.early_exit.calibrate import TooCheap, calibrate, choices
from offramp.early_exit.exit_scores import Rule, score_samples
from offramp.early_exit.geometric import (
    POINTS,
    between_samples,
    exits_taken,
    geometric_shares,
    geometric_thresholds,
)
from offramp.early_exit.policy import NEVER, ExitPolicy

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/golden.json").read_text())["dynamic_eval"]
EXITS, N, CLASSES = 4, 12, 5
FLOPS = np.array(GOLDEN["flops"])
LABELS = (2 * np.arange(N) + 1) % CLASSES


def logits(split: str) -> ndarray:
    """z[k,n,c] = 2.5 (1 + .3 k) sin(1 + off + 17 k + 5 n + c) in float64; off is 0 on val and 3 on test."""
    k, n, c = np.arange(EXITS)[:, None, None], np.arange(N)[:, None], np.arange(CLASSES)
    return 2.5 * (1 + 0.3 * k) * np.sin(1 + (0 if split == "val" else 3) + 17 * k + 5 * n + c)


def softmax(z: ndarray) -> ndarray:
    powers = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=lambda run: f"q={run['p']}")
def test_the_worked_example_of_msdnet(run: dict[str, Any]) -> None:
    # the example's `p` is our q, and its `q` are our shares
    shares = geometric_shares(run["p"], EXITS)
    np.testing.assert_allclose(shares, run["q"], rtol=1e-12)
    thresholds = geometric_thresholds(softmax(logits("val")).max(-1), shares)
    np.testing.assert_allclose(thresholds, run["T"], rtol=1e-8)
    for split in ("val", "test"):
        z = logits(split)
        taken = exits_taken(softmax(z).max(-1), thresholds)
        assert taken.tolist() == run[split]["exit"]
        answers = z.argmax(-1)[taken, np.arange(N)]
        assert 100 * (answers == LABELS).mean() == pytest.approx(run[split]["acc"], rel=1e-8)
        assert FLOPS[taken].mean() == pytest.approx(run[split]["flops"], rel=1e-8)


def test_shares_grow_by_q_from_exit_to_exit_and_sum_to_one() -> None:
    for q in (0.05, 0.5, 1.0, 1.95):
        shares = geometric_shares(q, 6)
        assert shares.sum() == pytest.approx(1)
        np.testing.assert_allclose(shares[1:] / shares[:-1], q)


def test_ties_leave_together_and_then_too_few_are_left_for_the_next_exit() -> None:
    confidence = np.ones((3, 8))
    confidence[0, 6:] = 0.5
    thresholds = geometric_thresholds(confidence, np.full(3, 1 / 3))
    # 8/3 of 8 samples may leave at exit 1, but the six that are equally sure do; two are left and two are wanted
    assert thresholds.tolist() == [1.0, 1.0, -NEVER]
    assert exits_taken(confidence, thresholds).tolist() == [0] * 6 + [1] * 2
    assert geometric_thresholds(np.ones((3, 8)), np.full(3, 1 / 3)).tolist() == [1.0, NEVER, -NEVER]


def test_where_less_than_one_sample_is_meant_to_leave_nobody_does() -> None:
    confidence = np.linspace(0.1, 0.9, 5)[None].repeat(3, 0)
    thresholds = geometric_thresholds(confidence, np.array([0.19, 0.41, 0.4]))
    assert thresholds.tolist() == [NEVER, pytest.approx(0.7), -NEVER]


def confidences(z: ndarray) -> ndarray:
    return score_samples(z, np.zeros(z.shape[1], int), (True,) * len(z), Rule()).score


def test_confidences_are_the_policys_own() -> None:
    z = logits("val").astype(np.float32)
    policy = ExitPolicy(thresholds=(0.0,) * EXITS, enabled=(True,) * EXITS)
    for exit in range(EXITS):
        assert confidences(z)[exit].tolist() == policy.step({}, z[exit], exit)[2].tolist()


def test_every_choice_of_exits_keeps_the_final_one() -> None:
    assert choices(1) == [(True,)]
    result = choices(4)
    assert len(set(result)) == 8 and all(flags[-1] for flags in result)
    assert result[-1] == (False, False, False, True)


@pytest.mark.parametrize(("exits", "most_early"), [(13, 11), (14, 6), (24, 3), (200, 1)])
def test_of_many_exits_a_bounded_number_of_choices_is_considered(exits: int, most_early: int) -> None:
    considered = choices(exits)
    assert len(set(considered)) == len(considered) <= 4097
    assert all(len(flags) == exits and flags[-1] for flags in considered)
    assert considered[0] == (True,) * exits and considered[-1] == (*(False,) * (exits - 1), True)
    assert max(sum(flags[:-1]) for flags in considered[1:]) == most_early


PIECES = {"stages": (3, 4, 5, 6), "branches": (2, 2, 2, 1)}


def costs(enabled: tuple[bool, ...]) -> list[float]:
    """Cost of every segment: the stages since the last enabled exit, and the exit's branch."""
    result, running = [], 0.0
    for on, stage, branch in zip(enabled, PIECES["stages"], PIECES["branches"], strict=True):
        running += stage
        if on:
            result.append(running + branch)
            running = 0.0
    return result


SEGMENT_COSTS = {enabled: costs(enabled) for enabled in choices(EXITS)}
PLAIN = SEGMENT_COSTS[False, False, False, True][0]


def samples(seed: int, n: int = 60) -> tuple[ndarray, ndarray]:
    """Logits that are right and sure more often the deeper the exit."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    z = rng.normal(size=(EXITS, n, CLASSES))
    z[:, np.arange(n), labels] += np.linspace(0.5, 2.0, EXITS)[:, None]
    return z.astype(np.float32), labels


def by_hand(z: ndarray, labels: ndarray) -> list[tuple[float, float]]:
    """(accuracy, cost) of every point of the rule with every choice of exits, one sample at a time."""
    result = []
    sure = confidences(z)
    for enabled, q in product(SEGMENT_COSTS, range(1, POINTS + 1)):
        on = [exit for exit in range(EXITS) if enabled[exit]]
        weights = [(q / 20) ** (place + 1) for place in range(len(on))]
        here, right, cost = set(range(len(labels))), 0, 0.0
        for place, exit in enumerate(on):
            count = int(len(labels) * weights[place] / sum(weights) + 1e-12)
            ranked = sorted((sure[exit][sample] for sample in here), reverse=True)
            last = place == len(on) - 1
            limit = ranked[count - 1] if 0 < count <= len(ranked) else np.inf
            leaving = {sample for sample in here if last or sure[exit][sample] >= limit}
            right += sum(z[exit, sample].argmax() == labels[sample] for sample in leaving)
            cost += len(leaving) * sum(SEGMENT_COSTS[enabled][: place + 1])
            here -= leaving
        result.append((right / len(labels), cost / len(labels)))
    return result


@pytest.mark.parametrize("seed", [0, 1])
def test_no_point_of_the_geometric_rule_is_better_at_equal_cost(seed: int) -> None:
    z, labels = samples(seed)
    points = by_hand(z, labels)
    result = []
    for budget in (0.4 * PLAIN, 0.6 * PLAIN, 0.8 * PLAIN, PLAIN):
        outcome = calibrate(z, labels, segment_costs=SEGMENT_COSTS, budget=budget)
        best = max(((acc, -cost) for acc, cost in points if cost <= budget + 1e-9))
        assert (outcome.accuracy, -outcome.cost) >= best
        assert outcome.cost <= budget
        result.append(outcome.accuracy)
    assert result == sorted(result)
    assert result[-1] >= (z[-1].argmax(1) == labels).mean()


def test_the_outcome_is_what_the_policy_does() -> None:
    z, labels = samples(2)
    for budget in (0.4 * PLAIN, 0.7 * PLAIN, PLAIN):
        outcome = calibrate(z, labels, segment_costs=SEGMENT_COSTS, budget=budget)
        policy = outcome.policy
        assert (policy.score, policy.answer) == ("confidence", "exit")
        taken = np.full(len(labels), -1)
        for exit in range(EXITS):
            *_, leaves = policy.step({}, z[exit], exit)
            taken[policy.enabled[exit] & leaves & (taken < 0)] = exit
        ends = dict(zip(np.flatnonzero(policy.enabled), np.cumsum(SEGMENT_COSTS[policy.enabled]), strict=True))
        assert outcome.shares == pytest.approx([(taken == exit).mean() for exit in range(EXITS)])
        assert outcome.accuracy == pytest.approx((z.argmax(2)[taken, np.arange(len(labels))] == labels).mean())
        assert outcome.cost == pytest.approx(np.mean([ends[exit] for exit in taken]))


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_lie_between_samples_so_that_rounding_moves_nobody(seed: int) -> None:
    sure = confidences(samples(seed)[0])
    for q in (0.3, 1.0, 1.7):
        published = geometric_thresholds(sure, geometric_shares(q, EXITS))
        moved = between_samples(sure, published)
        taken = exits_taken(sure, published)
        assert exits_taken(sure, moved).tolist() == taken.tolist()
        for exit in range(EXITS - 1):
            here = sure[exit][taken >= exit]
            assert (here < moved[exit]).sum() == (taken > exit).sum()
            assert np.abs(here - moved[exit]).min() > 1e-6
            assert moved[exit] <= published[exit]


def test_where_nobody_stays_the_threshold_is_only_just_below_the_last_to_leave() -> None:
    sure = np.array([[0.9, 0.6, 0.8], [0.9, 0.9, 0.9]])
    moved = between_samples(sure, np.array([0.6, -NEVER]))
    assert 0.5999 < moved[0] < 0.6 and moved[1] == -NEVER


def test_where_nobody_leaves_the_threshold_stays_out_of_reach() -> None:
    sure = np.array([[0.9, 0.6], [0.9, 0.9]])
    assert between_samples(sure, np.array([NEVER, -NEVER])).tolist() == [NEVER, -NEVER]


def test_exits_that_cost_more_than_they_save_are_switched_off() -> None:
    z, labels = samples(4)
    dear = {enabled: [cost + 1000 * (len(parts) - 1) for cost in parts] for enabled, parts in SEGMENT_COSTS.items()}
    outcome = calibrate(z, labels, segment_costs=dear, budget=PLAIN)
    assert outcome.policy.enabled == (False, False, False, True)
    assert (outcome.cost, outcome.shares) == (PLAIN, (0.0, 0.0, 0.0, 1.0))


def test_a_budget_that_is_too_small_names_the_cheapest() -> None:
    z, labels = samples(5)
    with pytest.raises(ValueError) as caught:
        calibrate(z, labels, segment_costs=SEGMENT_COSTS, budget=3.0)
    assert str(caught.value) == "no policy is that cheap: the budget is 3, the cheapest costs 5"
    assert calibrate(z, labels, segment_costs=SEGMENT_COSTS, budget=5).cost == 5


def test_a_split_without_samples() -> None:
    z, labels = samples(6)
    with pytest.raises(ValueError, match="the calibration split has no samples"):
        calibrate(z[:, :0], labels[:0], segment_costs=SEGMENT_COSTS, budget=PLAIN)


def one_exit_is_enough(right: list[int]) -> tuple[ndarray, ndarray]:
    """Logits of 40 samples of class 0, of which `right` are answered rightly at each exit, the surest first."""
    logits = np.zeros((len(right), 40, 2), np.float32)
    for exit, many in enumerate(right):
        logits[exit, :many, 0] = np.linspace(2, 1, many)
        logits[exit, many:, 1] = 0.5
    return logits, np.zeros(40, np.int64)


@pytest.mark.parametrize("answer", ["exit", "arithmetic", "sum"])
@pytest.mark.parametrize("score", ["confidence", "margin"])
def test_exits_where_nobody_leaves_are_switched_off(answer: str, score: str) -> None:
    z, labels = one_exit_is_enough([40, 38, 38, 38])
    costs = {on: [3 + 2 * flag for flag in on if flag] for on in choices(4)}
    result = calibrate(z, labels, segment_costs=costs, budget=100, rule=Rule(score, answer))
    assert result.policy.enabled == (True, False, False, True) and result.shares == (1.0, 0.0, 0.0, 0.0)
    assert result.accuracy == 1 and result.cost == costs[result.policy.enabled][0]


@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.full) for more in range(1, 6))])
@pytest.mark.parametrize("exits", [3, 5])
def test_every_exit_that_is_on_is_left_at(seed: int, exits: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, 60)
    z = random.normal(size=(exits, 60, 4)).astype(np.float32)
    z[:, np.arange(60), labels] += np.linspace(0.5, 1.5, exits)[:, None]
    costs = {on: [2 + (flag and exit + 1) for exit, flag in enumerate(on) if flag] for on in choices(exits)}
    for budget in np.linspace(sum(costs[(True,) * exits]) / 2, sum(costs[(True,) * exits]), 5):
        result = calibrate(z, labels, segment_costs=costs, budget=float(budget))
        early = list(zip(result.policy.enabled, result.shares))[:-1]
        assert all(share > 0 for on, share in early if on) and result.cost <= budget + 1e-9


def test_an_exit_that_others_lean_on_stays() -> None:
    # the second exit is right only together with the first, where nobody leaves: switched off, answers would be lost
    z = np.zeros((3, 8, 2), np.float32)
    z[0, :, 0], z[1, :, 1], z[2, :, 1] = 0.4, 0.3, 3.0
    costs = {on: [1.0] * sum(on) for on in choices(3)}
    result = calibrate(z, np.zeros(8, np.int64), segment_costs=costs, accuracy=1.0, rule=Rule("confidence", "sum"))
    assert result.accuracy == 1.0


def test_a_budget_below_everything_says_what_the_cheapest_costs() -> None:
    z, labels = one_exit_is_enough([20, 30])
    with pytest.raises(TooCheap, match="the budget is 1, the cheapest costs 2") as caught:
        calibrate(z, labels, segment_costs={(True, True): [2, 2], (False, True): [3]}, budget=1)
    assert (caught.value.budget, caught.value.cheapest) == (1, 2)
