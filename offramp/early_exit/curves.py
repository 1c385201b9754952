"""Accuracy against cost: every exit on all samples (anytime), and the 39 points of budgeted batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.exit_scores import Rule, check_trace, score_samples
from offramp.early_exit.geometric import POINTS, exits_taken, geometric_shares, geometric_thresholds


def anytime(
    logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"], costs: Sequence[int | float]
) -> list[dict[str, Any]]:
    """Accuracy in [0, 1] and cost of every exit on all samples.

    Args:
        costs: of a sample that takes each exit, with all exits enabled.
    Raises:
        ValueError: if the trace is empty or not finite.
    """
    check_trace(logits)
    right = [float((np.asarray(exit).argmax(1) == labels).mean()) for exit in logits]
    return [{"accuracy": accuracy, "cost": cost} for accuracy, cost in zip(right, costs, strict=True)]


def budgeted(
    held_out: tuple[Float[ndarray, "E M C"], Int[ndarray, "M"]],
    test: tuple[Float[ndarray, "E N C"], Int[ndarray, "N"]],
    costs: Sequence[int | float],
    rule: Rule = Rule(),  # noqa: B008 (a tuple of constants)
    hits: Mapping[str, Bool[ndarray, "E N"]] | None = None,
) -> list[dict[str, Any]]:
    """The 39 points of MSDNet's budgeted batch classification, all exits enabled (Huang et al., ICLR 2018).

    Thresholds are those of the geometric rule at q = p/20, fitted on the held-out trace; accuracy in [0, 1], mean cost
    and shares per exit are those of the test trace; `held_out_accuracy` and `held_out_cost` those of the held-out one.

    Args:
        held_out: logits and labels of the split that thresholds are fitted on.
        test: logits and labels of the reported split.
        costs: of a sample that takes each exit.
        hits: further outcomes on test by name, such as whether the label is among the five largest logits of an exit;
            every point gets their means.
    Raises:
        ValueError: if a trace is empty or not finite.
    """
    check_trace(held_out[0])
    check_trace(test[0])
    exits = len(costs)
    fitted, reported = (score_samples(logits, labels, (True,) * exits, rule) for logits, labels in (held_out, test))
    prices = np.asarray(costs, float)
    points = []
    for step in range(1, POINTS + 1):
        q = step / 20
        thresholds = geometric_thresholds(fitted.score, geometric_shares(q, exits))
        taken = exits_taken(reported.score, thresholds)
        counts = np.bincount(taken, minlength=exits)
        before = exits_taken(fitted.score, thresholds)
        points.append(
            {
                "q": q,
                "thresholds": thresholds.tolist(),
                "accuracy": float(reported.right[taken, np.arange(len(taken))].mean()),
                "cost": float(counts @ prices) / len(taken),
                "shares": (counts / len(taken)).tolist(),
                "held_out_accuracy": float(fitted.right[before, np.arange(len(before))].mean()),
                "held_out_cost": float(prices[before].mean()),
                **{name: float(hit[taken, np.arange(len(taken))].mean()) for name, hit in (hits or {}).items()},
            }
        )
    return points


def best_per_budget(
    models: Mapping[str, Sequence[Mapping[str, Any]]], budgets: Sequence[int | float]
) -> list[dict[str, Any] | None]:
    """For every budget the point of any model that is right most often on held-out data and costs no more there.

    Args:
        models: points of budgeted batches, as `budgeted` returns them, by name of the model.
        budgets: mean costs per image.
    Returns:
        The point with the name of its `model` and the `budget`; None if every point costs more. Nothing is chosen on
        test.

    Source: HDKD (Wang & Li, AAAI 2021), Fig. 2: one model per depth, at each budget the best one.
    """
    every = [{**point, "model": name} for name, points in models.items() for point in points]
    chosen: list[dict[str, Any] | None] = []
    for budget in budgets:
        affordable = [point for point in every if point["held_out_cost"] <= budget]
        best = max(affordable, key=lambda point: (point["held_out_accuracy"], -point["held_out_cost"]), default=None)
        chosen.append(None if best is None else {**best, "budget": budget})
    return chosen


def area(points: Sequence[Mapping[str, Any]], plain: int | float, guess: float) -> float:
    """Mean accuracy over all budgets from 0 to the plain network's cost, on the line through points of budgeted batch.

    Args:
        points: `cost` and `accuracy` of at least one; the curve is level behind the costliest.
        plain: cost of the plain network.
        guess: accuracy of a guess, which is what a budget below the cheapest point buys.
    """
    curve = sorted((float(point["cost"]) / plain, float(point["accuracy"])) for point in points)
    costs, accuracies = (np.asarray(values) for values in zip(*curve, strict=True))
    inside = np.unique(np.clip(np.append(costs, 1.0), None, 1.0))
    return float(guess * inside[0] + np.trapezoid(np.interp(inside, costs, accuracies), inside))
