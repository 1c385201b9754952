"""From all exits' logits of the calibration split to a policy: the geometric rule of MSDNet under a MACs budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from offramp.adapt.policy import NEVER, ExitPolicy

POINTS = 39
"""Budgets of the published curve: q = p/20 for p = 1 … 39 (methods of MSDNet and HDKD)."""


@dataclass(frozen=True)
class Outcome:
    """A policy and what it does on the calibration split: accuracy in [0, 1], mean cost, share leaving per exit."""

    policy: ExitPolicy
    accuracy: float
    cost: float
    shares: tuple[float, ...]


def geometric_shares(q: float, exits: int) -> Float[ndarray, "E"]:
    """P_k proportional to q^k, k = 1 … E, summing to one: the share of samples meant to leave at each exit."""
    powers = np.exp(np.log(q) * np.arange(1, exits + 1))
    return np.asarray(powers / powers.sum())


def geometric_thresholds(confidence: Float[ndarray, "E N"], shares: Float[ndarray, "E"]) -> Float[ndarray, "E"]:
    """Thresholds that let about `shares` of the samples leave at each exit (MSDNet's dynamic evaluation).

    Walking down each exit's samples by confidence and counting only those still here, the threshold is the confidence
    of the floor(N P_k)-th. Where that is none, or fewer are left because ties left early, nobody new leaves.
    """
    exits, n = confidence.shape
    thresholds = np.full(exits, NEVER)
    left = np.zeros(n, bool)
    for exit in range(exits - 1):
        here = np.sort(confidence[exit][~left])[::-1]
        wanted = int(np.floor(n * shares[exit]))
        if 0 < wanted <= len(here):
            thresholds[exit] = here[wanted - 1]
            left |= confidence[exit] >= thresholds[exit]
    thresholds[-1] = -NEVER
    return thresholds


def between_samples(confidence: Float[ndarray, "E N"], thresholds: Float[ndarray, "E"]) -> Float[ndarray, "E"]:
    """Thresholds that send these samples to the same exits, each halfway down to the surest sample that stays.

    The rule's own thresholds ARE confidences of samples, and confidences differ in the last bits with the batch and
    the runtime: whoever a threshold was read from might stay when it runs.
    """
    moved = thresholds.copy()
    left = np.zeros(confidence.shape[1], bool)
    for exit in range(len(thresholds) - 1):
        leaves = confidence[exit] >= thresholds[exit]
        if leaves.any():
            staying = confidence[exit][~left & ~leaves]
            moved[exit] = (thresholds[exit] + staying.max()) / 2 if len(staying) else thresholds[exit] * (1 - 1e-5)
        left |= leaves
    return moved


def exits_taken(confidence: Float[ndarray, "E N"], thresholds: Float[ndarray, "E"]) -> Int[ndarray, "N"]:
    """The first exit whose confidence is at least its threshold, for each sample."""
    passes = confidence >= thresholds[:, None]
    passes[-1] = True
    return np.asarray(passes.argmax(0))


def confidences(logits: Float[ndarray, "E N C"]) -> Float[ndarray, "E N"]:
    """Top softmax probability of every exit and sample, float32, as the policy's score `confidence` computes it."""
    z = logits.astype(np.float32)
    shifted = z - z.max(axis=2, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    return np.asarray(np.exp(log_p).max(axis=2))


def _feasible(
    confidence: Float[ndarray, "E N"],
    right: Float[ndarray, "E N"],
    enabled: tuple[bool, ...],
    costs: Sequence[int | float],
    budget: float,
) -> list[Outcome]:
    """All geometric points of one choice of enabled exits that stay within the budget."""
    on = np.flatnonzero(enabled)
    price = np.asarray(costs, float)
    found = []
    for q in [1.0] if len(on) == 1 else [point / 20 for point in range(1, POINTS + 1)]:
        thresholds = geometric_thresholds(confidence[on], geometric_shares(q, len(on)))
        taken = exits_taken(confidence[on], thresholds)
        cost = float(price[taken].mean())
        if cost <= budget:
            everywhere = np.full(len(enabled), NEVER)
            everywhere[on] = between_samples(confidence[on], thresholds)
            shares = np.bincount(on[taken], minlength=len(enabled)) / confidence.shape[1]
            accuracy = float(right[on[taken], np.arange(confidence.shape[1])].mean())
            policy = ExitPolicy(thresholds=tuple(everywhere.tolist()), enabled=enabled)
            found.append(Outcome(policy, accuracy, cost, tuple(shares.tolist())))
    return found


def calibrate(
    logits: Float[ndarray, "E N C"],
    labels: Int[ndarray, "N"],
    *,
    segment_costs: Mapping[tuple[bool, ...], Sequence[int | float]],
    budget: float,
) -> Outcome:
    """The most accurate policy of the geometric rule whose mean cost on the calibration split is within the budget.

    Args:
        logits: all exits' logits of the calibration split.
        labels: their labels.
        segment_costs: for every choice of enabled exits to consider, the cost of each of its segments as run
            (stages and branch). The choice with the final exit alone is the plain network.
        budget: mean cost per sample, in the same unit.
    Raises:
        ValueError: if no policy is that cheap; the message names the cheapest one's cost.
    """
    if logits.shape[1] == 0:
        raise ValueError("the calibration split has no samples")
    confidence = confidences(logits)
    right = (logits.argmax(2) == labels[None]).astype(np.float64)
    found: list[Outcome] = []
    for enabled, parts in segment_costs.items():
        found += _feasible(confidence, right, enabled, np.cumsum(parts).tolist(), budget)
    if not found:
        cheapest = min(
            (
                outcome
                for enabled, parts in segment_costs.items()
                for outcome in _feasible(confidence, right, enabled, np.cumsum(parts).tolist(), float("inf"))
            ),
            key=lambda outcome: outcome.cost,
        )
        raise ValueError(f"no policy is that cheap: the budget is {budget:.4g}, the cheapest costs {cheapest.cost:.4g}")
    return max(found, key=lambda outcome: (outcome.accuracy, -outcome.cost))


def choices(exits: int) -> list[tuple[bool, ...]]:
    """Every choice of enabled exits; the final one is always on."""
    return [(*early, True) for early in product((True, False), repeat=exits - 1)]
