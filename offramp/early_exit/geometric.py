"""The geometric rule of MSDNet (Huang et al., 2018): each exit takes q times as many samples as the one before."""

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from offramp.early_exit.policy import NEVER

POINTS = 39
"""Budgets of the published curve: q = p/20 for p = 1 … 39 (methods of MSDNet and HDKD)."""


def geometric_shares(q: float, exits: int) -> Float[ndarray, "E"]:
    """P_k proportional to q^k, k = 1 … E, summing to one: the intended share of samples at each exit."""
    powers = np.exp(np.log(q) * np.arange(1, exits + 1))
    return np.asarray(powers / powers.sum())


def descending(score: Float[ndarray, "E N"]) -> Int[ndarray, "E N"]:
    """The samples of every exit by falling score; equal ones in their original order."""
    return np.asarray(np.argsort(-score, axis=1, kind="stable").astype(np.int32))


def geometric_thresholds(
    score: Float[ndarray, "E N"], shares: Float[ndarray, "E"], order: Int[ndarray, "E N"] | None = None
) -> Float[ndarray, "E"]:
    """Thresholds with which about `shares` of the samples take each exit (MSDNet's dynamic evaluation).

    Of each exit's remaining samples by falling score, the threshold is the score of the floor(N P_k)-th. If that is
    none, or fewer remain because of ties at earlier exits, no further sample exits.

    Args:
        order: `descending(score)`, if it is known already.
    """
    exits, n = score.shape
    thresholds = np.full(exits, NEVER)
    left = np.zeros(n, bool)
    ranked = descending(score) if order is None else order
    for exit in range(exits - 1):
        remaining = ranked[exit][~left[ranked[exit]]]
        count = int(np.floor(n * shares[exit]))
        if 0 < count <= len(remaining):
            thresholds[exit] = score[exit][remaining[count - 1]]
            left |= score[exit] >= thresholds[exit]
    thresholds[-1] = -NEVER
    return thresholds


def between_samples(score: Float[ndarray, "E N"], thresholds: Float[ndarray, "E"]) -> Float[ndarray, "E"]:
    """Thresholds with which these samples take the same exits, each halfway to the next lower score.

    A fitted threshold is the score of a sample, and scores differ in the last bits with the batch and the runtime, so
    that this sample might continue. The result is rounded to the scores' precision, in which the runtime compares.
    """
    moved = thresholds.copy()
    left = np.zeros(score.shape[1], bool)
    for exit in range(len(thresholds) - 1):
        leaves = score[exit] >= thresholds[exit]
        if leaves.any():
            staying = score[exit][~left & ~leaves]
            moved[exit] = _halfway(score, thresholds[exit], staying)
        left |= leaves
    return moved


def _halfway(score: Shaped[ndarray, "..."], threshold: float, staying: Float[ndarray, "M"]) -> float:
    if not len(staying):
        low = threshold - max(abs(threshold), 1e-3) * 1e-5
        return float(score.dtype.type(low))
    surest = staying.max()
    middle = score.dtype.type((threshold + float(surest)) / 2)
    return float(middle) if surest < middle else threshold


def exits_taken(score: Float[ndarray, "E N"], thresholds: Float[ndarray, "E"]) -> Int[ndarray, "N"]:
    """The first exit whose score is at least its threshold, for each sample."""
    passes = score >= thresholds[:, None]
    passes[-1] = True
    return np.asarray(passes.argmax(0))
