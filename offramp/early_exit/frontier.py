"""The cost of early exit at any accuracy: policies fitted on one split for several budgets, reported on another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from offramp.early_exit.calibrate import TooCheap, calibrate, does
from offramp.early_exit.exit_scores import Rule, policy_of, rule_of_policy, score_samples
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.score_tables import Costs

DROPS = (0.0, 0.005)
"""Shares of accuracy below a plain network at which costs are compared."""
BUDGETS = 10
"""Budgets from the cheapest exit's cost to the plain network's, in equal ratios."""
SAMPLES = 2500
"""At most this many samples, drawn with a fixed seed, fit the policies of a frontier."""

LogitsLabels = tuple[Float[ndarray, "E N C"], Int[ndarray, "N"]]
"""Logits and labels of a split."""
Fitted = tuple[Float[ndarray, "E M C"], Int[ndarray, "M"]]
"""The same of another split."""


@dataclass(frozen=True)
class FrontierPoint:
    """A policy that was fitted for a budget: its accuracy and cost on the split for fitting and on the reported split.

    Attributes:
        cal_accuracy: on the split that it was fitted on, in [0, 1].
        cal_cost: mean per sample there, in the first unit.
        accuracy: on the reported split, in [0, 1].
        costs: mean per sample on the reported split, by unit (`macs`, `ms`).
    """

    cal_accuracy: int | float
    cal_cost: int | float
    accuracy: int | float
    costs: dict[str, int | float]


@dataclass(frozen=True)
class AtAccuracy:
    """The cost of early exit if it reaches a given accuracy on the split for fitting.

    Attributes:
        accuracy: on the reported split, in [0, 1].
        costs: mean per sample on the reported split, by unit.
    """

    accuracy: int | float
    costs: dict[str, int | float]


def frontier(
    cal: Fitted,
    test: LogitsLabels,
    costs: Mapping[str, Costs],
    rule: Rule = Rule(),  # noqa: B008 (a tuple of constants)
) -> list[FrontierPoint]:
    """The most accurate policy on cal for each of `BUDGETS` budgets, and the plain network; by rising cost.

    Args:
        cal: logits and labels of the split that policies are fitted on; test: of the reported split.
        costs: by unit, the costs of each choice of exits (see `offramp.early_exit.calibrate`); policies are fitted in
            the first unit. The last choice of exits is the plain network.
    """
    unit = next(iter(costs))
    prices = costs[unit]
    *_, final_only = prices
    cal = _drawn(cal)
    lowest, highest = min(float(each[0]) for each in prices.values()), float(prices[final_only][0])
    policies = [_plain(final_only, rule)]
    for budget in np.geomspace(lowest, highest, BUDGETS).tolist() if lowest < highest else ():
        try:
            policies.append(calibrate(*cal, segment_costs=prices, budget=budget * (1 + 1e-9), rule=rule).policy)
        except TooCheap:  # the cheapest segment belongs to a choice of exits that the search left out
            continue
    points = [_point(policy, cal, test, costs, unit) for policy in dict.fromkeys(policies)]
    return sorted(points, key=lambda point: (point.cal_cost, point.cal_accuracy))


def _drawn(split: LogitsLabels) -> LogitsLabels:
    logits, labels = split
    if len(labels) <= SAMPLES:
        return split
    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:SAMPLES])
    return logits[:, rows], labels[rows]


def _plain(final_only: tuple[bool, ...], rule: Rule) -> ExitPolicy:
    return policy_of(rule._replace(score="confidence", answer="exit", predictors=()), final_only)


def _point(policy: ExitPolicy, cal: Fitted, test: LogitsLabels, costs: Mapping[str, Costs], unit: str) -> FrontierPoint:
    rule = rule_of_policy(policy)
    prices = {name: np.cumsum(np.asarray(each[policy.enabled], float)) for name, each in costs.items()}
    fitted = does(policy, score_samples(*cal, policy.enabled, rule), prices[unit])
    scored = score_samples(*test, policy.enabled, rule)
    reported = {name: does(policy, scored, each) for name, each in prices.items()}
    return FrontierPoint(
        fitted.accuracy,
        fitted.cost,
        reported[unit].accuracy,
        {name: outcome.cost for name, outcome in reported.items()},
    )


def at_accuracy(points: Sequence[FrontierPoint], targets: int | float) -> AtAccuracy | None:
    """What the cheapest mixture of two policies that reaches this accuracy on cal does on the reported split.

    Mixtures interpolate between two policies: some samples, chosen at random, use one, the others the other.

    Returns:
        None if no policy is that accurate on cal.
    """
    hull = _hull(points)
    if targets > hull[-1].cal_accuracy + 1e-12:
        return None
    above = next(place for place, point in enumerate(hull) if point.cal_accuracy >= targets - 1e-12)
    if not above:
        return AtAccuracy(hull[0].accuracy, dict(hull[0].costs))
    low, high = hull[above - 1], hull[above]
    share = (targets - low.cal_accuracy) / (high.cal_accuracy - low.cal_accuracy)

    def mixed(first: int | float, second: int | float) -> float:
        return float(first + share * (second - first))

    costs: dict[str, int | float] = {unit: mixed(low.costs[unit], high.costs[unit]) for unit in low.costs}
    return AtAccuracy(mixed(low.accuracy, high.accuracy), costs)


def _hull(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no mixture of two others beats on cal, by rising cost: the upper concave envelope."""
    hull: list[FrontierPoint] = []
    for point in sorted(points, key=lambda point: (point.cal_cost, -point.cal_accuracy)):
        if hull and point.cal_accuracy <= hull[-1].cal_accuracy:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(low: FrontierPoint, high: FrontierPoint) -> float:
    rise = high.cal_accuracy - low.cal_accuracy
    return rise / (high.cal_cost - low.cal_cost)
