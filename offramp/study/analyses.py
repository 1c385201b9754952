"""The papers' analyses of exits, as pure functions of a trace.

Logits have the shape (E, N, C): E exits from shallow to deep, the final one last, N samples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


@dataclass(frozen=True)
class GoWrong:
    """Of the samples that an exit classifies correctly: how many there are, and which shares later exits get wrong.

    The shares are in [0, 1], and None if the exit classifies nothing correctly.
    """

    correct: int
    any_later: float | None
    all_later: float | None


@dataclass(frozen=True)
class Agreement:
    """Numbers of samples by whether the final exit and an earlier one classify them correctly."""

    both: int
    final_only: int
    exit_only: int
    neither: int


@dataclass(frozen=True)
class SoftmaxStatistics:
    """Means over the samples of one exit's sorted probabilities, and of their entropies in nats.

    Attributes:
        rank_means: C means; the first is the mean probability of the predicted class.
        top: k, the number of ranks in `entropy_top`.
        entropy_top: -sum p ln p over the k largest probabilities as they are.
        entropy_top_renormalised: the same with these k divided by their sum.
        entropy: over all classes.
    """

    rank_means: list[float]
    top: int
    entropy_top: float
    entropy_top_renormalised: float
    entropy: float


class RelativeExit(NamedTuple):
    """An exit relative to the final one: cost (operations or time) and accuracy, both 1 for the final exit."""

    cost: float
    accuracy: float


def correct(logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"]) -> Bool[ndarray, "E N"]:
    """Whether each exit's most probable class is the label."""
    return np.asarray(logits.argmax(-1) == labels)


def go_wrong(right: Bool[ndarray, "E N"]) -> list[GoWrong]:
    """Samples that every exit but the final one classifies correctly and later exits get wrong.

    Both readings of "going wrong when going deeper": at least one later exit is wrong, and all later exits are wrong.

    Args:
        right: as `correct` returns it.
    Returns:
        One entry for each of the E - 1 early exits.
    Source: MUSE, Fig. 5 (at least one); MSD words it as all.
    """
    results = []
    for exit in range(len(right) - 1):
        later_wrong = ~right[exit + 1 :, right[exit]]
        samples = later_wrong.shape[1]
        results.append(
            GoWrong(
                samples,
                float(later_wrong.any(0).mean()) if samples else None,
                float(later_wrong.all(0).mean()) if samples else None,
            )
        )
    return results


def agreement(right: Bool[ndarray, "E N"]) -> list[Agreement]:
    """The 2×2 table of every early exit against the final one.

    Args:
        right: as `correct` returns it.
    Source: EED, Fig. 2.
    """
    final = right[-1]
    return [
        Agreement(
            both=int((exit & final).sum()),
            final_only=int((~exit & final).sum()),
            exit_only=int((exit & ~final).sum()),
            neither=int((~exit & ~final).sum()),
        )
        for exit in right[:-1]
    ]


def only_correct(right: Bool[ndarray, "E N"]) -> list[Int[ndarray, "_"]]:
    """For every exit the samples that it classifies correctly and no other exit does, as positions in the trace."""
    single = right.sum(0) == 1
    return [np.flatnonzero(exit & single) for exit in right]


def softmax_statistics(logits: Float[ndarray, "N C"], top: int = 5) -> SoftmaxStatistics:
    """Sorted probabilities and entropies of one exit, averaged over the samples, in float64.

    Args:
        top: number of ranks in the partial entropies; at most C are used.
    Source: MUSE, Fig. 6, which does not say whether the partial entropy is renormalised: both are returned.
    """
    ordered = np.sort(_softmax(logits), axis=1)[:, ::-1]
    part = ordered[:, :top]
    return SoftmaxStatistics(
        rank_means=[float(value) for value in ordered.mean(0)],
        top=part.shape[1],
        entropy_top=_entropy(part),
        entropy_top_renormalised=_entropy(part / part.sum(1, keepdims=True)),
        entropy=_entropy(ordered),
    )


def _softmax(logits: Float[ndarray, "N C"]) -> Float[ndarray, "N C"]:
    shifted = np.asarray(logits, np.float64)
    exponentials = np.exp(shifted - shifted.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def _entropy(probabilities: Float[ndarray, "N _"]) -> float:
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return float(-(probabilities * logs).sum(1).mean())


def dissimilarity(rows: Float[ndarray, "N D"]) -> Float[ndarray, "N N"]:
    """The representational dissimilarity matrix: 1 - Pearson's correlation of every pair of samples, in [0, 2].

    A sample whose D values are all equal has no correlation: its entries are NaN.

    Source: EED, Fig. 4.
    """
    centred = np.asarray(rows, np.float64)
    centred = centred - centred.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norms, out=np.full_like(centred, np.nan), where=norms > 0)
    return np.asarray(1 - unit @ unit.T)


def sorted_sample(
    labels: Int[ndarray, "N"], samples: int = 500, classes: int | None = None, seed: int = 0
) -> Int[ndarray, "_"]:
    """Positions of randomly chosen samples, sorted by label, as in EED, Fig. 4.

    Args:
        samples: how many; all, if there are fewer.
        classes: choose among the samples of this many classes, the first ones that occur; None: among all.
        seed: of numpy's generator that chooses.
    """
    allowed = np.unique(labels)[:classes]
    places = np.flatnonzero(np.isin(labels, allowed))
    chosen = np.random.default_rng(seed).permutation(places)[:samples]
    return np.asarray(chosen[np.argsort(labels[chosen], kind="stable")])


def relative(accuracies: Sequence[float], costs: Sequence[int | float]) -> list[RelativeExit]:
    """Accuracy and cost of every exit relative to the final one's.

    Args:
        accuracies: of E exits; costs: of reaching each of them, in any unit.
    Raises:
        ValueError: if the final exit's accuracy or cost is zero, or their numbers differ.
    Source: MUSE, Fig. 4.
    """
    if len(accuracies) != len(costs) or not accuracies:
        raise ValueError(f"accuracies and costs must be one per exit, got {len(accuracies)} and {len(costs)}")
    if not accuracies[-1] or not costs[-1]:
        raise ValueError("the final exit has an accuracy or a cost of 0, so nothing can be given relative to it")
    return [RelativeExit(cost / costs[-1], right / accuracies[-1]) for right, cost in zip(accuracies, costs)]
