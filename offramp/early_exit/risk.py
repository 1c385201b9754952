"""Bounds on risk from finitely many samples: conformal risk control, and exact binomial bounds tested in sequence.

Conformal risk control (Angelopoulos et al., 2024) bounds the expectation; fixed-sequence testing (Angelopoulos et al.,
Learn then Test, 2021) with the exact binomial tail bounds the risk with high probability. Both are used for exits by
Jazbec et al. (2024), whose released code accepts the first policy that is NOT certified and rounds counts up in
floating point; here counts are integers and the walk stops before the first failure.
"""

import math

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

MOST = 10**9
"""More samples than anybody will label: beyond it the answer is that no number is enough."""


def binomial_tail(count: int, n: int, risk: float) -> float:
    """P(at most `count` of n samples lose), if each does with probability `risk`: the p-value of "the risk is higher".

    Raises:
        ValueError: if the count is not in 0 … n or the risk not in (0, 1).
    """
    if not 0 <= count <= n or not 0 < risk < 1:
        raise ValueError(f"a binomial tail needs a count in 0 … {n} and a risk in (0, 1), got {count} and {risk}")
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(x + 1)
        - math.lgamma(n - x + 1)
        + x * math.log(risk)
        + (n - x) * math.log1p(-risk)
        for x in range(count + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def fixed_sequence(counts: Int[ndarray, "J"], n: int, risk: float, delta: float) -> int:
    """The last policy certified, counting from 1 along a path that was fixed beforehand; 0 if not even the first is.

    Args:
        counts: how many of the n samples each policy loses, safest policy first. The plain network, which loses
            nothing by definition, comes before them and is not tested.

    Then P(risk of the answer > `risk`) <= delta over the draw of the samples: an error needs the first bad policy of
    the path to pass, and each passes with probability at most delta. No monotonicity is needed.
    """
    for place, count in enumerate(counts.tolist()):
        if binomial_tail(count, n, risk) > delta:
            return place
    return len(counts)


def conformal(losses: Bool[ndarray, "J N"], risk: float) -> int:
    """The last policy whose expected loss on a new sample is at most `risk`, counting from 1; 0 if there is none.

    Args:
        losses: whether it is lost, for each policy and sample, safest policy first.

    The proof needs every sample's loss to grow along the path. 0-1 losses do not (a sample may be lost at exit 1 and
    won at exit 2), so each is replaced by its largest so far, which only makes the guarantee safer.
    """
    sums = np.maximum.accumulate(losses, axis=0).sum(1, dtype=np.int64)
    return int(np.searchsorted(sums, math.floor(risk * (losses.shape[1] + 1) - 1 + 1e-9), side="right"))


def samples_needed(rate: float, risk: float, delta: float | None = None) -> int | None:
    """How many samples certify a policy that loses this share of them; None if no number does.

    Args:
        delta: for the bound with probability 1 - delta; without it, for the bound in expectation.
    """
    if rate >= risk:
        return None

    def enough(n: int) -> bool:
        lost = math.ceil(rate * n - 1e-9)
        return lost + 1 <= risk * (n + 1) + 1e-9 if delta is None else binomial_tail(lost, n, risk) <= delta

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST or (delta is not None and rate * high > 10**6):
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
