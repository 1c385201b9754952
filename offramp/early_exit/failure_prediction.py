"""How well the score of an exit ranks samples by whether leaving there is right.

Source: Kubaty, Szatkowski, Jazbec and Wójcik, "Failure Prediction Is a Better Performance Proxy for Early-Exit Networks
Than Calibration", 2025 (arXiv 2508.21495): which samples leave depends on the order of the scores alone, so their
ranking says what early exit can gain, and the calibration error does not.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.exit_scores import Rule, score_samples


def auroc(score: Float[ndarray, "N"], right: Bool[ndarray, "N"]) -> float | None:
    """Area under the ROC curve: the probability that a right prediction scores above a wrong one, ties counted half.

    Returns:
        A number in [0, 1]; 0.5 is what random scores give. None if all predictions are right, or all wrong.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1, the mean rank of equal scores
    return float((ranks[place.reshape(-1)][right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def of_exits(
    logits: Float[ndarray, "E N C"],
    labels: Int[ndarray, "N"],
    rule: Rule = Rule(),  # noqa: B008 (a tuple of constants)
) -> list[float | None]:
    """The area of every exit, all exits enabled, with the scores that a policy of this rule compares."""
    scored = score_samples(logits, labels, (True,) * len(logits), rule)
    return [auroc(score, right) for score, right in zip(scored.score, scored.right, strict=True)]
