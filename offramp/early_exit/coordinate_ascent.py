"""The best thresholds for a goal, by exact line searches along one threshold at a time."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.exit_scores import ScoredSamples
from offramp.early_exit.geometric import descending
from offramp.early_exit.policy import NEVER

SWEEPS = 50
"""Maximum rounds over all thresholds; an ascent ends with the first round that does not improve."""


class SearchGoal(NamedTuple):
    """The most accurate policy up to this mean `cost`, or the cheapest one of at least this `accuracy` (in [0, 1]).

    Exactly one of the two is set.
    """

    cost: int | float | None = None
    accuracy: int | float | None = None


class ExitTable(NamedTuple):
    """K exits on N samples: score, correctness, the cost of a sample that takes the exit, samples by falling score."""

    score: Float[ndarray, "K N"]
    right: Int[ndarray, "K N"]
    costs: Float[ndarray, "K"]
    order: Int[ndarray, "K N"]


class Point(NamedTuple):
    """Thresholds (K,), the number of right predictions, and the sum of all samples' costs."""

    thresholds: Float[ndarray, "K"]
    right: int
    cost: float


def make_table(
    scored: ScoredSamples, costs: Float[ndarray, "K"], order: Int[ndarray, "K N"] | None = None
) -> ExitTable:
    """The table that the search works on; `order` if it is known already.

    Raises:
        ValueError: if a deeper exit does not cost more.
    """
    if (np.diff(costs) <= 0).any():
        raise ValueError(f"every exit must cost more than the one before, got {costs.tolist()}")
    ranked = descending(scored.score) if order is None else order
    return ExitTable(scored.score, scored.right.astype(np.int8), np.asarray(costs, float), ranked)


def point(table: ExitTable, thresholds: Float[ndarray, "K"]) -> Point:
    """Results of these thresholds."""
    last = len(table.costs) - 1
    counts, right = np.zeros(len(table.costs), int), 0
    staying = np.ones(table.score.shape[1], bool)
    for exit in range(last + 1):
        leaves = staying if exit == last else staying & (table.score[exit] >= thresholds[exit])
        counts[exit] = np.count_nonzero(leaves)
        right += int(np.count_nonzero(leaves & table.right[exit].view(bool)))
        staying = staying ^ leaves
    return Point(thresholds, right, float(counts @ table.costs))


def limit(goal: SearchGoal, n: int) -> float:
    """The goal as a sum over n samples: the highest cost, or the lowest number of right predictions.

    With a small tolerance, so that a budget equal to a policy's mean cost admits that policy.
    """
    if goal.cost is not None:
        return goal.cost * n * (1 + 1e-12)
    assert goal.accuracy is not None
    return float(np.ceil(goal.accuracy * n - 1e-6))


def met(goal: SearchGoal, candidate: Point, n: int) -> bool:
    """Whether the point reaches the goal."""
    return candidate.cost <= limit(goal, n) if goal.cost is not None else candidate.right >= limit(goal, n)


def rank(goal: SearchGoal, candidate: Point, n: int) -> tuple[float, float, float]:
    """Sort key, larger is better: first the goal itself (or the distance to it), then the other quantity."""
    good, right = met(goal, candidate, n), float(candidate.right)
    if good == (goal.cost is not None):
        return (float(good), right, -candidate.cost)
    return (float(good), -candidate.cost, right)


def choose(
    goal: SearchGoal,
    right: Int[ndarray, "P"],
    cost: Float[ndarray, "P"],
    allowed: Bool[ndarray, "P"],
    n: int,
) -> int:
    """Index of the best of P candidates along one threshold, from no sample exiting to all; their cost falls."""
    if goal.cost is not None:
        first = int(np.searchsorted(-cost, -limit(goal, n)))  # the first one cheap enough
        open_ = np.where(allowed[first:], right[first:], -1)
        if not len(open_) or open_.max() < 0:
            return len(cost) - 1
        return len(cost) - 1 - int(open_[::-1].argmax())
    enough = np.flatnonzero(allowed & (right >= limit(goal, n)))
    if len(enough):
        return int(enough[-1])
    return len(cost) - 1 - int(np.where(allowed, right, -1)[::-1].argmax())


def ascend(table: ExitTable, start: Float[ndarray, "K"], goal: SearchGoal) -> Point:
    """Move one threshold at a time to its best value until none moves; the result is never worse than the start."""
    n = table.score.shape[1]
    best = point(table, start)
    for _ in range(SWEEPS):
        candidate = _sweep(table, best.thresholds, goal)
        if rank(goal, candidate, n) <= rank(goal, best, n):
            break
        best = candidate
    return best


def _sweep(table: ExitTable, start: Float[ndarray, "K"], goal: SearchGoal) -> Point:
    """One round over all thresholds, shallow to deep."""
    last = len(table.costs) - 1
    later_right, later_cost = [table.right[last]], [np.full(table.score.shape[1], table.costs[last])]
    for exit in range(last - 1, 0, -1):  # the result of a sample that reaches this exit
        leaves = table.score[exit] >= start[exit]
        later_right.append(np.where(leaves, table.right[exit], later_right[-1]))
        later_cost.append(np.where(leaves, table.costs[exit], later_cost[-1]))
    thresholds = start.copy()
    left = np.zeros(table.score.shape[1], bool)
    done_right, done_cost = 0, 0.0
    for exit in range(last):
        reaching = table.order[exit][~left[table.order[exit]]]
        if not len(reaching):
            break
        after = (later_right[last - 1 - exit][reaching], later_cost[last - 1 - exit][reaching])
        thresholds[exit], right, cost = _move(table, exit, reaching, after, (done_right, done_cost), goal)
        done_right, done_cost = done_right + right, done_cost + cost
        left |= table.score[exit] >= thresholds[exit]
    return point(table, thresholds)


def _move(
    table: ExitTable,
    exit: int,
    reaching: Int[ndarray, "M"],
    after: tuple[ndarray, ndarray],
    done: tuple[int, float],
    goal: SearchGoal,
) -> tuple[float, int, float]:
    """The best threshold of one exit: (threshold, right predictions of samples that take it, their cost).

    Args:
        reaching: the samples that reach it, by falling score.
        after: right (M,) and cost (M,) of each if it does not exit here.
        done: right predictions and cost of samples that exited before.
    """
    score = table.score[exit][reaching]
    correct = table.right[exit][reaching]
    gained = np.concatenate(([0], np.cumsum(correct - after[0], dtype=np.int64)))
    saved = np.concatenate(([0.0], np.cumsum(after[1] - table.costs[exit])))
    allowed = np.concatenate(([True], score[1:] < score[:-1], [True]))  # equal scores exit together
    right = done[0] + int(after[0].sum(dtype=np.int64)) + gained
    cost = done[1] + float(after[1].sum()) - saved
    cut = choose(goal, right, cost, allowed, table.score.shape[1])
    threshold = float(score[cut - 1]) if cut else NEVER
    return threshold, int(correct[:cut].sum(dtype=np.int64)), cut * float(table.costs[exit])
