"""Where samples leave and how certain they are then, as counts: what a server compares its answers with.

Runs without torch.
"""

from typing import Any

import numpy as np

from offramp.early_exit.policy import ExitPolicy, PolicyCarry

BINS = 20
"""Bins of the scores of an exit, of equal width in [0, 1]."""


def score_bin(score: int | float) -> int:
    """The bin of a score; scores outside of [0, 1] (patience) are in the first or last."""
    return min(BINS - 1, max(0, int(score * BINS)))


def exit_counts(policy: ExitPolicy, logits: Any) -> list[list[int]]:
    """For each exit, the number of samples of (E, N, C) logits that exit there with a score in each of `BINS` bins."""
    carry: PolicyCarry = {}
    staying = np.ones(logits.shape[1], bool)
    counts = [[0] * BINS for _ in range(policy.exits)]
    for exit in [exit for exit, on in enumerate(policy.enabled) if on]:
        carry, _, score, leaves = policy.step(carry, np.asarray(logits[exit]), exit)
        for value in score[staying & leaves].tolist():
            counts[exit][score_bin(value)] += 1
        staying &= ~leaves
    return counts
