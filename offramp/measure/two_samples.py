"""Whether two accuracies differ by more than chance: Fisher's exact test of two groups of samples."""

import math

LEVEL = 0.001
"""Differences with a smaller p-value are reported."""


def fisher(right: tuple[int, int], samples: tuple[int, int]) -> float:
    """The two-sided p-value of Fisher's exact test: both groups are right equally often.

    Args:
        right: number of right samples of each group.
        samples: size of each group.
    Source: R. A. Fisher, The logic of inductive inference, J. Royal Statistical Society, 1935.
    """
    total, both = sum(right), sum(samples)
    low, high = max(0, total - samples[1]), min(total, samples[0])
    logs = [
        _choose(samples[0], k) + _choose(samples[1], total - k) - _choose(both, total) for k in range(low, high + 1)
    ]
    log_ranks = logs[right[0] - low] + 1e-7  # includes equal ones, whatever their rounding
    return min(1.0, math.fsum(math.exp(value) for value in logs if value <= log_ranks))


def _choose(n: int, k: int) -> float:
    """The logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def warning(cal: float, cal_samples: int, test: float, test_samples: int) -> str:
    """A sentence if the plain network's accuracies on cal and test differ by more than chance allows, else nothing."""
    right = round(cal * cal_samples), round(test * test_samples)
    if fisher(right, (cal_samples, test_samples)) >= LEVEL:
        return ""
    return (
        f"the plain network is right on {100 * cal:.1f} % of cal ({cal_samples:,}) but {100 * test:.1f} % of test "
        f"({test_samples:,}), more than chance allows (Fisher's exact test, p < {LEVEL:g}): cal images may have been "
        "trained on, or test images are of another kind; what was fitted or certified on cal need not hold"
    )
