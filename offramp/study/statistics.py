"""Means over seeds and paired differences with Student's confidence interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Mean(NamedTuple):
    """A mean over runs, their number and standard deviation (n - 1); None for one run."""

    mean: float
    deviation: float | None
    runs: int


class PairedDifference(NamedTuple):
    """The mean of paired differences, and its confidence interval [low, high]; None for one pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard deviation with n - 1.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    middle = math.fsum(values) / len(values)
    if len(values) == 1:
        return Mean(middle, None, 1)
    squares = math.fsum((value - middle) ** 2 for value in values)
    return Mean(middle, math.sqrt(squares / (len(values) - 1)), len(values))


def paired(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """`ours` less `theirs`, pair by pair: the mean and Student's interval with n - 1 degrees of freedom.

    Raises:
        ValueError: if there is not one of theirs for each of ours.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"pairs need as many of one as of the other, got {len(ours)} and {len(theirs)}")
    result = mean([a - b for a, b in zip(ours, theirs, strict=True)])
    if result.deviation is None:
        return PairedDifference(result.mean, None, None, 1)
    half = t_quantile((1 + confidence) / 2, result.runs - 1) * result.deviation / math.sqrt(result.runs)
    return PairedDifference(result.mean, result.mean - half, result.mean + half, result.runs)


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with this many degrees of freedom stays below with the given probability.

    Raises:
        ValueError: if the probability is not within (0, 1), or there are no degrees of freedom.
    """
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(
            f"t needs a probability in (0, 1) and at least 1 degree of freedom, got {probability} and {freedom}"
        )
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while t_below(high, freedom) < probability:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_below(middle, freedom) < probability else (low, middle)
    return high


def t_below(value: float, freedom: int) -> float:
    """P(T <= value) of Student's t, by the finite sums for whole degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, freedom - 1, 2):  # powers of the cosine: 1, 3, ... or 0, 2, ..., freedom - 2
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2
