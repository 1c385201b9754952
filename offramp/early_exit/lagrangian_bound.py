"""A Lagrangian bound on the goal: how much better any thresholds could be than those of the search."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from offramp.early_exit.coordinate_ascent import ExitTable, SearchGoal

STEPS = 24
"""Rounds of golden-section search; the bound holds at every price, so more rounds only tighten it."""


def bound(table: ExitTable, goal: SearchGoal) -> float:
    """A bound for all thresholds on these exits: of accuracy (in [0, 1]) for a cost goal, else of the mean cost.

    Costs are weighted by λ. One exit at a time keeps a true threshold, while each sample takes the best of the other
    exits. This relaxation contains all policies and is easy to solve. The tightest bound over exits and λ is returned.
    """
    if len(table.costs) == 1:
        return float(table.right[0].mean()) if goal.cost is not None else float(table.costs[0])
    scale = 1.0 / float(table.costs[-1] - table.costs[0])
    bounds = [_best_price(table, goal, exit, scale) for exit in range(len(table.costs) - 1)]
    if goal.cost is not None:
        return float(min(1.0, *bounds))
    return float(max(table.costs[0], *bounds))


def _best_price(table: ExitTable, goal: SearchGoal, exit: int, scale: float) -> float:
    """The tightest bound over λ for one exit; the Lagrangian dual is unimodal in log λ up to harmless noise."""
    sign = 1.0 if goal.cost is not None else -1.0
    tried: dict[float, float] = {}

    def value_at(power: float) -> float:
        if power not in tried:
            tried[power] = sign * _dual(table, goal, exit, scale * 10.0**power)
        return tried[power]

    low, high = -4.0, 2.0
    golden = (5**0.5 - 1) / 2
    for _ in range(STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if value_at(left) <= value_at(right):
            high = right
        else:
            low = left
    return float(sign * min(tried.values()))


def _dual(table: ExitTable, goal: SearchGoal, exit: int, price: float) -> float:
    n = table.score.shape[1]
    most = _relaxed(table, exit, price)
    if goal.cost is not None:
        return float(most / n + price * goal.cost)
    assert goal.accuracy is not None
    return float((goal.accuracy - most / n) / price)


def _relaxed(table: ExitTable, exit: int, price: float) -> float:
    """The most right predictions minus weighted costs, with a threshold at one exit and free choice elsewhere."""
    values: Float[ndarray, "K N"] = table.right - price * table.costs[:, None]
    before = values[: exit + 1].max(0)
    after = values[exit + 1 :].max(0)
    if exit:
        after = np.maximum(after, values[:exit].max(0))
    gains = np.concatenate(([0.0], np.cumsum((before - after)[table.order[exit]])))
    return float(after.sum() + gains.max())
