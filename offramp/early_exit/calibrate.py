"""Fits a policy, its thresholds and enabled exits, to a goal, from the logits of all exits on the calibration split."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, floor

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from offramp.early_exit.coordinate_ascent import ExitTable, Point, SearchGoal, ascend, make_table, met, point, rank
from offramp.early_exit.exit_scores import (
    WORKERS,
    Rule,
    ScoredSamples,
    check_trace,
    policy_of,
)
from offramp.early_exit.geometric import (
    POINTS,
    between_samples,
    exits_taken,
    geometric_shares,
    geometric_thresholds,
)
from offramp.early_exit.lagrangian_bound import bound
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.score_tables import Costs, Enabled, ScoreTables
from offramp.early_exit.search_exact import pair

MOST_CHOICES = 4096
"""Choices of enabled exits that are considered: their number doubles with every exit."""
ALL_CHOICES = 8
"""Up to this many choices of exits (four exits), all are searched; of more, only the most promising ones."""
PROMISING = 2
SCREENED = 2000
"""Samples on which every second point of the geometric rule selects the promising choices, if there are many."""
WHOLE = 8000
"""Up to this many samples, every ascent uses all of them; of more, ascents start on a random subset."""
FINISHED = 2


class TooCheap(ValueError):
    """No policy is within the budget. `budget` and `cheapest` are mean costs per sample, in the unit of the costs."""

    def __init__(self, budget: float, cheapest: float) -> None:
        super().__init__(f"no policy is that cheap: the budget is {budget:.4g}, the cheapest costs {cheapest:.4g}")
        self.budget, self.cheapest = budget, cheapest


@dataclass(frozen=True)
class Outcome:
    """A policy and its results on the calibration split.

    Attributes:
        policy: The fitted policy.
        accuracy: In [0, 1].
        cost: Mean per sample, in the unit of the costs.
        shares: Share of samples that take each exit.
        bound: What no thresholds on the same exits can exceed on these samples: an accuracy if the goal is a cost, a
            cost if it is an accuracy; None if nothing was searched.
    """

    policy: ExitPolicy
    accuracy: float
    cost: float
    shares: tuple[float, ...]
    bound: float | None = None


def choices(exits: int) -> list[Enabled]:
    """The choices of enabled exits to consider: all exits first, the plain network last; the final exit is in all.

    They are all choices if that is at most `MOST_CHOICES` (13 exits); of more exits, besides all of them, those with as
    many early exits as fit.
    """
    early = exits - 1
    if 2**early <= MOST_CHOICES:
        return [(*flags, True) for flags in product((True, False), repeat=early)]
    sizes, number = [0], 1
    while number + comb(early, len(sizes)) <= MOST_CHOICES:
        number += comb(early, len(sizes))
        sizes.append(len(sizes))
    subsets = [subset for size in reversed(sizes) for subset in combinations(range(early), size)]
    return [(True,) * exits, *((*(exit in subset for exit in range(early)), True) for subset in subsets)]


def calibrate(
    logits: Float[ndarray, "E N C"],
    labels: Int[ndarray, "N"],
    *,
    segment_costs: Costs,
    budget: int | float | None = None,
    accuracy: int | float | None = None,
    rule: Rule = Rule(),  # noqa: B008 (a tuple of constants)
) -> Outcome:
    """The most accurate policy within a budget, or the cheapest one of at least an accuracy, on these samples.

    Up to three exits, no policy of the rule is better. Beyond, thresholds are moved one at a time to their best values,
    starting from every point of MSDNet's geometric rule, so that no point of it is better at equal cost. With more than
    8,000 samples, these ascents use a random subset of 8,000, and the best two results and the best point of the rule
    continue on all samples. With more than eight choices of exits (four exits), the search covers those that the
    geometric rule ranks best on at most 2,000 samples, all exits enabled, and the plain network.

    Args:
        logits: of all exits on the calibration split; may be memory-mapped.
        labels: their labels.
        segment_costs: costs of each choice of exits; the choice with the final exit alone is the plain network.
        budget: mean cost per sample, in the unit of the costs.
        accuracy: in [0, 1]; exactly one of budget and accuracy is required.
        rule: score, answer and temperatures.

    Raises:
        TooCheap: if no policy is within the budget.
        ValueError: if no policy is that accurate, naming the best accuracy; if the logits are empty or not finite.
    """
    if (budget is None) == (accuracy is None):
        raise ValueError("exactly one goal is needed: a budget or an accuracy")
    check_trace(logits)
    goal = SearchGoal(budget, accuracy)
    n = logits.shape[1]
    tables = ScoreTables(logits, labels, segment_costs, rule)
    candidates: list[tuple[Enabled, Point, int]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for enabled in _searched(tables, segment_costs, goal):
            for patience, table in tables.for_choice(enabled):
                candidates += [(enabled, solution, patience) for solution in _solve(table, goal, rule, patience, pool)]
    enabled, solution, patience = max(candidates, key=lambda entry: rank(goal, entry[1], n))
    if not met(goal, solution, n):
        raise _missed(goal, candidates, n)
    enabled, solution = _without_idle(tables, enabled, solution, patience, goal)
    return _outcome(tables, enabled, solution, patience, goal)


def _without_idle(
    tables: ScoreTables, enabled: Enabled, solution: Point, patience: int, goal: SearchGoal
) -> tuple[Enabled, Point]:
    """The same point with exits disabled that no sample takes: they cost a branch for nothing.

    If results depend on earlier exits, such an exit is disabled only if nothing gets worse.
    """
    table = dict(tables.for_choice(enabled))[patience]
    n = table.score.shape[1]
    taken = exits_taken(table.score, solution.thresholds)
    on = [exit for exit, flag in enumerate(enabled) if flag]
    for exit in [exit for place, exit in enumerate(on[:-1]) if not (taken == place).any()]:
        fewer = tuple(flag and other != exit for other, flag in enumerate(enabled))
        if fewer not in tables.costs:
            continue
        thresholds = np.delete(solution.thresholds, sum(enabled[:exit]))
        same = [point(less, thresholds) for passed, less in tables.for_choice(fewer) if passed == patience]
        if same and rank(goal, same[0], n) >= rank(goal, solution, n):
            enabled, solution = fewer, same[0]
    return enabled, solution


def _missed(goal: SearchGoal, candidates: list[tuple[Enabled, Point, int]], n: int) -> ValueError:
    if goal.cost is not None:
        return TooCheap(float(goal.cost), min(solution.cost for _, solution, _ in candidates) / n)
    right = max(solution.right for _, solution, _ in candidates)
    best = floor(10_000 * right / n) / 100  # rounded down, so that it can be typed
    return ValueError(
        f"no policy is that accurate on the calibration split: {100 * (goal.accuracy or 0):.2f} % is wanted, the most "
        f"accurate reaches {best:.2f} %"
    )


def _searched(tables: ScoreTables, costs: Costs, goal: SearchGoal) -> list[Enabled]:
    """The choices of exits to search."""
    all_choices = list(costs)
    if len(all_choices) <= ALL_CHOICES or tables.rule.score == "patience":
        return all_choices
    few = tables.drawn(SCREENED)
    n = few.logits.shape[1]
    scores = {}
    for enabled in all_choices:
        ((_, table),) = few.for_choice(enabled)
        scores[enabled] = max(rank(goal, solution, n) for solution in _geometric(table, every=2))
    best = sorted(all_choices, key=lambda enabled: scores[enabled], reverse=True)[:PROMISING]
    edges = [enabled for enabled in all_choices if all(enabled) or sum(enabled) == 1]
    return list(dict.fromkeys([*best, *edges]))


def _geometric(table: ExitTable, every: int = 1) -> list[Point]:
    """The points of the geometric rule, or every n-th of them."""
    exits = len(table.costs)
    if exits == 1:
        return [point(table, np.array([-NEVER]))]
    shares = [geometric_shares(step / 20, exits) for step in range(1, POINTS + 1, every)]
    return [point(table, geometric_thresholds(table.score, share, table.order)) for share in shares]


def _solve(table: ExitTable, goal: SearchGoal, rule: Rule, patience: int, pool: ThreadPoolExecutor) -> list[Point]:
    """Candidates for one choice of exits, the best one among them."""
    exits = len(table.costs)
    if rule.score == "patience":
        return [point(table, np.append(np.full(exits - 1, float(patience)), -NEVER))]
    if exits == 1:
        return _geometric(table)
    if exits == 2:
        return [ascend(table, np.array([NEVER, -NEVER]), goal)]
    if exits == 3:
        return [pair(table, goal)]
    return _climb(table, goal, pool)


def _climb(table: ExitTable, goal: SearchGoal, pool: ThreadPoolExecutor) -> list[Point]:
    """Results of ascents from all points of the geometric rule; the best is no worse than any of these points."""
    n = table.score.shape[1]

    def up(table: ExitTable, starts: list[Point]) -> list[Point]:
        return list(pool.map(lambda start: ascend(table, start.thresholds, goal), starts))

    if n <= WHOLE:
        return up(table, _geometric(table))
    rows = np.sort(np.random.default_rng(0).permutation(n)[:WHOLE])
    few = make_table(ScoredSamples(table.score[:, rows], table.right[:, rows].astype(bool)), table.costs)
    ends = {tuple(end.thresholds.tolist()) for end in up(few, _geometric(few))}

    def best(points: Iterable[Point], most: int) -> list[Point]:
        return sorted(points, key=lambda solution: rank(goal, solution, n), reverse=True)[:most]

    begun = [point(table, np.array(thresholds)) for thresholds in sorted(ends)]
    return up(table, [*best(begun, FINISHED), *best(_geometric(table), 1)])


def _outcome(tables: ScoreTables, enabled: Enabled, solution: Point, patience: int, goal: SearchGoal) -> Outcome:
    """The policy of a point, and its results."""
    on = np.flatnonzero(enabled)
    table = dict(tables.for_choice(enabled))[patience]
    moved = solution.thresholds
    if tables.rule.score != "patience":
        moved = between_samples(table.score, solution.thresholds)
    everywhere = np.full(len(enabled), NEVER)
    everywhere[on[:-1]] = moved[:-1]
    policy = policy_of(tables.rule, enabled, tuple(everywhere.tolist()), patience)
    limit = None if tables.rule.score == "patience" else bound(table, goal)
    return does(policy, tables.score_samples(enabled), table.costs, limit)


def does(policy: ExitPolicy, scored: ScoredSamples, costs: Float[ndarray, "K"], limit: float | None = None) -> Outcome:
    """Results of a policy on samples scored at its enabled exits; `costs` of a sample that takes each of them."""
    on = np.flatnonzero(policy.enabled)
    n = scored.score.shape[1]
    required = (
        np.full(len(on), float(policy.patience)) if policy.score == "patience" else np.array(policy.thresholds)[on]
    )
    passes = scored.score >= required[:, None].astype(np.float32)
    passes[-1] = True
    taken = passes.argmax(0)
    counts = np.bincount(taken, minlength=len(on))
    shares = np.zeros(len(policy.enabled))
    shares[on] = counts / n
    accuracy = int(scored.right[taken, np.arange(n)].sum()) / n
    return Outcome(policy, accuracy, float(counts @ costs) / n, tuple(shares.tolist()), limit)
