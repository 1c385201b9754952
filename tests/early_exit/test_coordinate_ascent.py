"""The search against trying every threshold, and the bound against what the search finds."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from numpy import ndarray

from offramp.early_exit.calibrate import Rule, calibrate, choices
from offramp.early_exit.coordinate_ascent import ExitTable, Point, SearchGoal, ascend, make_table, met, point, rank
from offramp.early_exit.exit_scores import ScoredSamples, score_samples
from offramp.early_exit.geometric import geometric_shares, geometric_thresholds
from offramp.early_exit.lagrangian_bound import bound
from offramp.early_exit.policy import NEVER
from offramp.early_exit.search_exact import pair

CLASSES = 4


def draw(seed: int, exits: int, n: int, ties: bool) -> ExitTable:
    """Exits that are right more often the deeper, and the surer the more often; with ties, scores in tenths."""
    rng = np.random.default_rng(seed)
    sure = rng.random((exits, n))
    right = rng.random((exits, n)) < (0.3 + 0.4 * sure + 0.3 * np.linspace(0, 1, exits)[:, None])
    score = (np.round(sure, 1) if ties else sure).astype(np.float32)
    return make_table(ScoredSamples(score, right), np.cumsum(rng.integers(1, 9, exits)).astype(float))


def every_point(table: ExitTable) -> Iterator[Point]:
    """All thresholds that differ in what they do."""
    levels = [[NEVER, *np.unique(score)] for score in table.score[:-1]]
    for early in product(*levels):
        yield point(table, np.array([*early, -NEVER]))


def goals(table: ExitTable) -> list[SearchGoal]:
    low, high = table.costs[0], table.costs[-1]
    final = table.right[-1].mean()
    budgets = [SearchGoal(cost=float(low + share * (high - low))) for share in (0.0, 0.2, 0.5, 0.8, 1.0)]
    return [*budgets, *(SearchGoal(accuracy=float(final - drop)) for drop in (0.2, 0.05, 0.0, -0.02, -0.5))]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.full) for more in range(1, 4))])
@pytest.mark.parametrize(("exits", "n"), [(2, 40), (3, 1), (3, 2), (3, 30), (3, 41)])
def test_up_to_three_exits_nothing_is_better(exits: int, n: int, seed: int, ties: bool) -> None:
    table = draw(seed, exits, n, ties)
    everything = list(every_point(table))
    for goal in goals(table):
        result = pair(table, goal) if exits == 3 else ascend(table, np.array([NEVER, -NEVER]), goal)
        best = max(rank(goal, there, n) for there in everything)
        if best[0]:
            assert rank(goal, result, n) == best
        else:
            assert not met(goal, result, n)
        assert result == point(table, result.thresholds) or result.right == point(table, result.thresholds).right


@pytest.mark.parametrize("seed", range(3))
def test_an_ascent_ends_where_no_single_threshold_can_be_moved_for_the_better(seed: int) -> None:
    n = 50
    table = draw(seed, 5, n, ties=seed == 0)
    for goal in goals(table):
        start = geometric_thresholds(table.score, geometric_shares(0.8, 5))
        result = ascend(table, start, goal)
        assert rank(goal, result, n) >= rank(goal, point(table, start), n)
        for exit in range(4):
            for level in (NEVER, *np.unique(table.score[exit])):
                moved = result.thresholds.copy()
                moved[exit] = level
                assert rank(goal, point(table, moved), n) <= rank(goal, result, n)


@pytest.mark.parametrize("exits", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_for_every_policy(exits: int, seed: int) -> None:
    n = 30
    table = draw(seed, exits, n, ties=False)
    everything = list(every_point(table))
    for goal in goals(table):
        limit = bound(table, goal)
        for there in everything:
            if not met(goal, there, n):
                continue
            if goal.cost is not None:
                assert there.right / n <= limit + 1e-9
            else:
                assert there.cost / n >= limit - 1e-9


def test_the_bound_is_no_empty_one() -> None:
    table = draw(0, 4, 400, ties=False)
    middle = float(table.costs.mean())
    result = ascend(table, np.array([NEVER, NEVER, NEVER, -NEVER]), SearchGoal(cost=middle))
    assert result.right / 400 <= bound(table, SearchGoal(cost=middle)) < 1
    reached = SearchGoal(accuracy=result.right / 400)
    assert table.costs[0] < bound(table, reached) <= result.cost / 400
    alone = make_table(ScoredSamples(table.score[-1:], table.right[-1:].astype(bool)), table.costs[-1:])
    assert bound(alone, SearchGoal(cost=1e9)) == table.right[-1].mean()


def samples(seed: int, exits: int, n: int) -> tuple[ndarray, ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    z = rng.normal(size=(exits, n, CLASSES))
    z[:, np.arange(n), labels] += np.linspace(0.5, 2.0, exits)[:, None]
    return z.astype(np.float32), labels


def costs(exits: int) -> dict[tuple[bool, ...], list[int]]:
    """Stages of 5 and branches of 2."""
    result = {}
    for enabled in choices(exits):
        parts, running = [], 0
        for on in enabled:
            running += 5
            if on:
                parts.append(running + 2)
                running = 0
        result[enabled] = parts
    return result


@pytest.mark.parametrize("rule", [Rule(), Rule("margin"), Rule("entropy", "arithmetic"), Rule("confidence", "sum")])
@pytest.mark.parametrize("exits", [1, 2, 3])
def test_the_choice_of_exits_and_thresholds_equals_brute_force(exits: int, rule: Rule) -> None:
    z, labels = samples(exits, exits, 25)
    prices = costs(exits)
    plain = prices[choices(exits)[-1]][0]
    for goal in (
        SearchGoal(cost=0.6 * plain + 3),
        SearchGoal(cost=plain),
        SearchGoal(accuracy=0.5),
        SearchGoal(accuracy=0.7),
    ):
        ranks = []
        for enabled in prices:
            table = make_table(score_samples(z, labels, enabled, rule), np.cumsum(prices[enabled]).astype(float))
            ranks += [rank(goal, there, 25) for there in every_point(table)]
        best = max(ranks)
        if not best[0]:
            with pytest.raises(ValueError, match="no policy is that"):
                calibrate(z, labels, segment_costs=prices, budget=goal.cost, accuracy=goal.accuracy, rule=rule)
            continue
        result = calibrate(z, labels, segment_costs=prices, budget=goal.cost, accuracy=goal.accuracy, rule=rule)
        there = Point(np.empty(0), round(result.accuracy * 25), result.cost * 25)
        assert rank(goal, there, 25) == pytest.approx(best)


def assert_never_worse_than_the_geometric_rule(exits: int, n: int) -> None:
    """At equal cost, for eight costs; and it is better for more than two of them."""
    z, labels = samples(7, exits, n)
    prices = costs(exits)
    everything = (True,) * exits
    table = make_table(score_samples(z, labels, everything, Rule()), np.cumsum(prices[everything]).astype(float))
    better = 0
    for step in range(1, 40, 8):
        there = point(table, geometric_thresholds(table.score, geometric_shares(step / 20, exits)))
        result = calibrate(z, labels, segment_costs=prices, budget=there.cost / n)
        assert result.accuracy >= there.right / n and result.cost <= there.cost / n
        assert result.bound is None or result.accuracy <= result.bound + 1e-9
        better += result.accuracy > there.right / n
    assert better > 2


@pytest.mark.parametrize(("exits", "n"), [(4, 200), (6, 300)])
def test_beyond_it_is_never_worse_than_the_geometric_rule_at_equal_cost(exits: int, n: int) -> None:
    assert_never_worse_than_the_geometric_rule(exits, n)


def test_of_many_samples_a_draw_begins_and_the_promise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.early_exit import calibrate as calibration

    monkeypatch.setattr(calibration, "WHOLE", 200)
    monkeypatch.setattr(calibration, "SCREENED", 100)
    assert_never_worse_than_the_geometric_rule(5, 500)


def test_deeper_exits_must_cost_more() -> None:
    with pytest.raises(ValueError, match=r"every exit must cost more than the one before, got \[2.0, 2.0\]"):
        make_table(ScoredSamples(np.zeros((2, 3), np.float32), np.zeros((2, 3), bool)), np.array([2.0, 2.0]))


@pytest.mark.parametrize("goals", [{}, {"budget": 5.0, "accuracy": 0.5}])
def test_exactly_one_goal(goals: dict[str, float]) -> None:
    z, labels = samples(0, 2, 9)
    with pytest.raises(ValueError, match="exactly one goal is needed: a budget or an accuracy"):
        calibrate(z, labels, segment_costs=costs(2), **goals)


def test_an_accuracy_out_of_reach_names_the_best() -> None:
    z, labels = samples(0, 2, 50)
    with pytest.raises(ValueError, match=r"no policy is that accurate .*: 99.90 % is wanted, .* reaches \d\d.00 %$"):
        calibrate(z, labels, segment_costs=costs(2), accuracy=0.999)


def test_damaged_logits_are_refused() -> None:
    z, labels = samples(0, 2, 9)
    z[1, 3, 2] = np.nan
    with pytest.raises(ValueError, match="exit 2 returns logits that are not finite"):
        calibrate(z, labels, segment_costs=costs(2), budget=9)


@pytest.mark.parametrize("answer", ["exit", "geometric"])
def test_patience_is_chosen_by_trying(answer: str) -> None:
    z, labels = samples(3, 4, 200)
    result = calibrate(z, labels, segment_costs=costs(4), budget=20, rule=Rule("patience", answer))
    assert result.policy.score == "patience" and result.cost <= 20
    more = calibrate(z, labels, segment_costs=costs(4), accuracy=result.accuracy, rule=Rule("patience", answer))
    assert more.cost <= result.cost and more.accuracy >= result.accuracy
