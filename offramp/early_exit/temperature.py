"""Temperature scaling: one temperature per exit, by the likelihood of the labels (Guo et al., 2017)."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from offramp import finite

ROWS = 5000
"""Maximum number of samples used: enough for one number per exit."""
STEPS = 40
RANGE = (0.05, 20.0)


def fit(logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"]) -> tuple[float, ...]:
    """The temperature of each exit that minimises the negative log-likelihood, within [0.05, 20].

    The likelihood is convex in 1/T, so golden-section search finds its only minimum.

    Raises:
        ValueError: if there are no samples, or a logit is not finite.
    """
    if not len(labels):
        raise ValueError("temperatures cannot be fitted on no samples")
    finite.check([("logits", logits)], "temperatures")
    rows = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), ROWS)).astype(int))
    return tuple(_one(np.asarray(part[rows], np.float64), labels[rows]) for part in logits)


def nll(logits: Float[ndarray, "N C"], labels: Int[ndarray, "N"]) -> float:
    """Mean negative log-likelihood in nats."""
    shifted = logits - logits.max(1, keepdims=True)
    label_logits = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(1)) - label_logits).mean())


def _one(logits: Float[ndarray, "N C"], labels: Int[ndarray, "N"]) -> float:
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = nll(logits * left, labels), nll(logits * right, labels)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = nll(logits * left, labels)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = nll(logits * right, labels)
    return float(round(2 / (low + high), 6))
