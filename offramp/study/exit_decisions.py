"""Who leaves where: a policy gone through on a trace, the samples of each exit from easiest to hardest, the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.exit_scores import ROWS
from offramp.early_exit.policy import ExitPolicy


class Left(NamedTuple):
    """Every sample where it left: the exit (0-based), its score and answer there, and log p of the true class."""

    exit: Int[ndarray, "N"]
    score: Float[ndarray, "N"]
    answer: Int[ndarray, "N"]
    likelihood: Float[ndarray, "N"]

    def shares(self, exits: int) -> list[float]:
        """The share of samples that left at each exit, in [0, 1]."""
        counts = np.bincount(self.exit, minlength=exits) / max(len(self.exit), 1)
        return [float(share) for share in counts]


class ClassRow(NamedTuple):
    """One class: how many samples, the share leaving at each exit, how often right, mean cost per sample."""

    label: int
    samples: int
    shares: list[float]
    accuracy: float
    cost: float


def leave(policy: ExitPolicy, logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"]) -> Left:
    """Send all samples through a policy, as the runtime does, by `ExitPolicy.step` itself."""
    n = logits.shape[1]
    made = Left(np.zeros(n, np.int64), np.zeros(n), np.zeros(n, np.int64), np.zeros(n))
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        waiting = np.ones(len(labels[rows]), bool)
        carry: dict[str, ndarray] = {}
        for exit in np.flatnonzero(policy.enabled).tolist():
            carry, answer, score, leaves = policy.step(carry, np.asarray(logits[exit, rows]), exit)
            now = waiting & leaves
            places = start + np.flatnonzero(now)
            made.exit[places], made.score[places] = exit, score[now]
            made.answer[places], made.likelihood[places] = _told(answer[now], labels[places])
            waiting &= ~now
    return made


def stay(logits: Float[ndarray, "N C"], labels: Int[ndarray, "N"], exit: int) -> Left:
    """All samples judged at one exit alone; the score is the confidence."""
    n = len(labels)
    made = Left(np.full(n, exit, np.int64), np.zeros(n), np.zeros(n, np.int64), np.zeros(n))
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        z = np.asarray(logits[rows])
        made.answer[rows], made.likelihood[rows] = _told(z, labels[rows])
        made.score[rows] = np.exp(_log_softmax(z).max(1))
    return made


def _told(z: Float[ndarray, "B C"], labels: Int[ndarray, "B"]) -> tuple[Int[ndarray, "B"], Float[ndarray, "B"]]:
    return z.argmax(1), _log_softmax(z)[np.arange(len(labels)), labels]


def _log_softmax(z: Float[ndarray, "B C"]) -> Float[ndarray, "B C"]:
    """In float64, which still tells samples apart that float32 calls certain."""
    shifted = z.astype(np.float64) - z.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def extremes(left: Left, exit: int, most: int) -> tuple[list[int], list[int]]:
    """(easiest, hardest) of the samples that left at an exit, as places in the trace, `most` of each at most.

    Easiest are those whose true class got the highest probability, hardest the lowest; the first ones where several
    are equal. No sample is both.
    """
    here = np.flatnonzero(left.exit == exit)
    order = here[np.argsort(-left.likelihood[here], kind="stable")]
    half = min(most, (len(order) + 1) // 2)
    hard = order[half:][-most:] if most else order[:0]
    return [int(place) for place in order[:half]], [int(place) for place in hard[::-1]]


def by_class(left: Left, labels: Int[ndarray, "N"], prices: Sequence[int | float]) -> list[ClassRow]:
    """Every class that has samples, from the one that leaves at the least mean cost to the costliest.

    Args:
        prices: what a sample costs when it leaves at each exit.
    """
    costs, right = np.asarray(prices, float)[left.exit], left.answer == labels
    rows = []
    for label in np.unique(labels).tolist():
        own: Bool[ndarray, "N"] = labels == label
        part = Left(*(values[own] for values in left))
        rows.append(
            ClassRow(
                label, int(own.sum()), part.shares(len(prices)), float(right[own].mean()), float(costs[own].mean())
            )
        )
    return sorted(rows, key=lambda row: (row.cost, row.label))
