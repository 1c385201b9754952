"""Where samples exit: a policy applied to a trace; the samples of each exit from easiest to hardest; the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.exit_scores import ROWS
from offramp.early_exit.policy import ExitPolicy


class ExitDecisions(NamedTuple):
    """For every sample: its exit (0-based), its score and prediction there, and log p of the true class."""

    exit: Int[ndarray, "N"]
    score: Float[ndarray, "N"]
    answer: Int[ndarray, "N"]
    likelihood: Float[ndarray, "N"]

    def shares(self, exits: int) -> list[float]:
        """The share of samples that exit at each exit, in [0, 1]."""
        counts = np.bincount(self.exit, minlength=exits) / max(len(self.exit), 1)
        return [float(share) for share in counts]


class ClassRow(NamedTuple):
    """One class: number of samples, share at each exit, accuracy, mean cost per sample."""

    label: int
    samples: int
    shares: list[float]
    accuracy: float
    cost: float


def apply_policy(policy: ExitPolicy, logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"]) -> ExitDecisions:
    """Apply a policy to all samples by `ExitPolicy.step`, as the runtime does."""
    n = logits.shape[1]
    decisions = ExitDecisions(np.zeros(n, np.int64), np.zeros(n), np.zeros(n, np.int64), np.zeros(n))
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        waiting = np.ones(len(labels[rows]), bool)
        carry: dict[str, ndarray] = {}
        for exit in np.flatnonzero(policy.enabled).tolist():
            carry, answer, score, exits_here = policy.step(carry, np.asarray(logits[exit, rows]), exit)
            exiting = waiting & exits_here
            places = start + np.flatnonzero(exiting)
            decisions.exit[places], decisions.score[places] = exit, score[exiting]
            decisions.answer[places], decisions.likelihood[places] = _predictions(answer[exiting], labels[places])
            waiting &= ~exiting
    return decisions


def single_exit(logits: Float[ndarray, "N C"], labels: Int[ndarray, "N"], exit: int) -> ExitDecisions:
    """All samples at one exit; the score is the confidence."""
    n = len(labels)
    decisions = ExitDecisions(np.full(n, exit, np.int64), np.zeros(n), np.zeros(n, np.int64), np.zeros(n))
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        z = np.asarray(logits[rows])
        decisions.answer[rows], decisions.likelihood[rows] = _predictions(z, labels[rows])
        decisions.score[rows] = np.exp(_log_softmax(z).max(1))
    return decisions


def _predictions(z: Float[ndarray, "B C"], labels: Int[ndarray, "B"]) -> tuple[Int[ndarray, "B"], Float[ndarray, "B"]]:
    return z.argmax(1), _log_softmax(z)[np.arange(len(labels)), labels]


def _log_softmax(z: Float[ndarray, "B C"]) -> Float[ndarray, "B C"]:
    """In float64, which still distinguishes samples whose probability is 1 in float32."""
    shifted = z.astype(np.float64) - z.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def extremes(decisions: ExitDecisions, exit: int, most: int) -> tuple[list[int], list[int]]:
    """(easiest, hardest) samples of an exit, as positions in the trace, at most `most` of each.

    The easiest have the highest probability of the true class, the hardest the lowest; ties keep their order. No
    sample is both.
    """
    places = np.flatnonzero(decisions.exit == exit)
    order = places[np.argsort(-decisions.likelihood[places], kind="stable")]
    half = min(most, (len(order) + 1) // 2)
    hard = order[half:][-most:] if most else order[:0]
    return [int(place) for place in order[:half]], [int(place) for place in hard[::-1]]


def by_class(decisions: ExitDecisions, labels: Int[ndarray, "N"], prices: Sequence[int | float]) -> list[ClassRow]:
    """Every class that has samples, in order of its mean cost.

    Args:
        prices: cost of a sample at each exit.
    """
    costs, right = np.asarray(prices, float)[decisions.exit], decisions.answer == labels
    rows = []
    for label in np.unique(labels).tolist():
        members: Bool[ndarray, "N"] = labels == label
        part = ExitDecisions(*(values[members] for values in decisions))
        rows.append(
            ClassRow(
                label,
                int(members.sum()),
                part.shares(len(prices)),
                float(right[members].mean()),
                float(costs[members].mean()),
            )
        )
    return sorted(rows, key=lambda row: (row.cost, row.label))
