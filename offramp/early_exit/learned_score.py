"""The score `learned`: a logistic regression per exit on what it and the exits before it predict. Runs without torch.

Every exit has its own weights, plain numbers that are fitted on val (`offramp.early_exit.fit_learned`). They weigh the
features of a sample at that exit, see `FEATURES`.
"""

import math
import operator
from typing import Any

import numpy as np

Array = Any
ScoreCarry = dict[str, Array]
FEATURES = ("log_top", "second", "third", "entropy", "agrees", "agreeing")
"""In this order: logarithm of the highest probability; distances of the largest logit to the second and the third;
entropy of the probabilities in nats; whether the enabled exit before predicts the same class (0 at the first exit);
how many enabled exits directly before do."""
FARTHEST = 20.0
"""Distances between logits count up to this, so that no sample is infinitely far from the others."""
SAID = "agreement"
"""The carry's key of an array (B, 2): the class that the exit predicts, and how many directly before do too."""


def score(xp: Any, z: Array, carry: ScoreCarry, weights: tuple[float, ...]) -> tuple[ScoreCarry, Array]:
    """The probability that the prediction of an exit is correct, by the exit's predictor.

    Args:
        xp: the array API functions of the library of `z`.
        z: logits (B, C) in float32, numpy or torch.
        carry: as returned at the enabled exit before; {} at the first one.
        weights: one per feature, and a constant.
    Returns:
        The carry for the next exit, and the scores (B,) in [0, 1].
    """
    if len(z) == 1 and (xp is np or (getattr(z, "is_cpu", False) and not z.requires_grad)):  # numpy, or torch on a CPU
        array = z if xp is np else z.numpy()
        prediction, certainty = _one(array[0], carry[SAID].tolist()[0] if SAID in carry else None, weights)
        after, scores = np.array([prediction], np.float32), np.array([certainty], np.float32)
        if xp is not np:
            after, scores = xp.from_numpy(after), xp.from_numpy(scores)
        return {**carry, SAID: after}, scores
    values, carry = features(xp, z, carry)
    logit = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:-1], strict=True):
        logit = logit + value * weight
    return carry, 1 / (1 + xp.exp(-(logit + weights[-1])))


def _one(row: np.ndarray, before: list[float] | None, weights: tuple[float, ...]) -> tuple[list[float], float]:
    """What `score` computes, of one sample, by numbers: at batch 1 an operation on arrays costs as much as a layer."""
    prediction, largest, second, third = _largest_three(row)
    second, third = min(largest - second, FARTHEST), min(largest - third, FARTHEST)
    shifted = row - row[int(prediction)]
    exponentials = np.exp(shifted)
    total = float(np.add.reduce(exponentials))
    log_total = math.log(total)
    agreeing = before[1] + 1 if before is not None and prediction == before[0] else 0.0
    entropy = log_total - float(exponentials.dot(shifted)) / total
    values = (-log_total, second, third, entropy, float(agreeing > 0), agreeing, 1.0)
    logit = sum(map(operator.mul, weights, values))
    return [prediction, agreeing], 1 / (1 + math.exp(-max(logit, -700.0)))


def _largest_three(row: np.ndarray) -> tuple[float, float, float, float]:
    """The class of the largest logit, and the three largest; the smallest one is repeated if there are fewer."""
    prediction = int(row.argmax())
    if len(row) < 3:
        least = row.item(int(row.argmin()))
        return float(prediction), row.item(prediction), least, least
    rest = row.copy()  # three maxima take a fraction of the time of a partition
    rest[prediction] = -math.inf
    place = int(rest.argmax())
    second = rest.item(place)
    rest[place] = -math.inf
    return float(prediction), row.item(prediction), second, rest.item(int(rest.argmax()))


def features(xp: Any, z: Array, carry: ScoreCarry) -> tuple[list[Array], ScoreCarry]:
    """What `FEATURES` lists, each (B,), and the carry for the next exit; arguments as in `score`."""
    prediction = xp.argmax(z, axis=1)
    shifted = z - xp.max(z, axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = xp.sum(exponentials, axis=1)
    log_total = xp.log(total)
    entropy = log_total - xp.sum(exponentials * shifted, axis=1) / total
    second, third = _next_two(xp, shifted)
    none = xp.zeros_like(total)
    prediction = none + prediction
    agrees = agreeing = none
    if SAID in carry:
        agrees = xp.where(prediction == carry[SAID][:, 0], none + 1, none)
        agreeing = agrees * (carry[SAID][:, 1] + 1)
    values = [-log_total, second, third, entropy, agrees, agreeing]
    return values, {**carry, SAID: xp.stack([prediction, agreeing], axis=1)}


def _next_two(xp: Any, shifted: Array) -> tuple[Array, Array]:
    """The distances of the second and the third logit to the largest, which is 0."""
    places = _places(shifted.shape[1])
    ordered = np.partition(shifted, places, axis=1) if xp is np else xp.sort(shifted, axis=1)
    second, third = (xp.clip(-ordered[:, place], None, FARTHEST) for place in places)
    return second, third


def _places(classes: int) -> tuple[int, int]:
    """Positions of the second and the third of this many sorted logits; the smallest one if there are fewer."""
    return max(classes - 2, 0), max(classes - 3, 0)
