"""Fits the predictors of the score `learned`: logistic regressions, by Newton's method."""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.exit_scores import Rule, check_trace, policy_of
from offramp.early_exit.learned_score import FEATURES, features

RIDGE = 1e-2
"""Weight of the squared coefficients, per sample, on features of unit deviation."""
STEPS = 30
SMALLEST = 50
"""Fewer samples of one kind (right or wrong) at an exit do not fit a predictor."""

PredictorWeights = tuple[float, ...]


def fit(logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"], rule: Rule) -> tuple[PredictorWeights, ...]:
    """The predictor of every early exit: one weight per feature and a constant, rounded to six digits.

    What is predicted is whether leaving is right: the exit is right, or the final one is wrong as well. If too few
    samples show the contrary, the predictor has the order of the confidence.

    Args:
        logits: of all exits, on a split that thresholds are not fitted on.
        labels: the true classes.
        rule: answer and temperatures of the policy.
    Raises:
        ValueError: if there are no samples, or a logit is not finite.
    """
    check_trace(logits)
    policy = policy_of(rule._replace(score="confidence", predictors=()), (True,) * len(logits))
    carry: dict[str, ndarray] = {}
    agreement: dict[str, ndarray] = {}
    measured, right = [], []
    for exit in range(len(logits)):
        carry, answer, _, _ = policy.step(carry, np.asarray(logits[exit]), exit)
        values, agreement = features(np, answer, agreement)
        measured.append(np.stack(values, axis=1).astype(np.float64))
        right.append(answer.argmax(1) == labels)
    return tuple(_one(values, here | ~right[-1]) for values, here in zip(measured[:-1], right[:-1], strict=True))


def _one(values: Float[ndarray, "N F"], right: Bool[ndarray, "N"]) -> PredictorWeights:
    """One predictor, on features of any scale."""
    if min(right.sum(), (~right).sum()) < SMALLEST:
        return (1.0, *(0.0,) * len(FEATURES))
    center, scale = values.mean(0), values.std(0)
    scale[scale < 1e-6] = np.inf  # a feature that does not vary gets no weight
    coefficients = _newton(np.column_stack([(values - center) / scale, np.ones(len(values))]), right.astype(float))
    slopes = coefficients[:-1] / scale
    constant = coefficients[-1] - float(slopes @ center)
    return tuple(float(f"{weight:.6g}") for weight in (*slopes, constant))


def _newton(x: Float[ndarray, "N K"], y: Float[ndarray, "N"]) -> Float[ndarray, "K"]:
    """Coefficients of least penalised log-loss; the last column is the constant, which is not penalised."""
    ridge = np.diag(np.append(np.full(x.shape[1] - 1, RIDGE * len(y)), 1e-9))
    coefficients = np.zeros(x.shape[1])
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(x @ coefficients, -30, 30)))
        slope = x.T @ (y - chance) - ridge @ coefficients
        step = np.linalg.solve((x * (chance * (1 - chance))[:, None]).T @ x + ridge, slope)
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-8:
            break
    return coefficients
