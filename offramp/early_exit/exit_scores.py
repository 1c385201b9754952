"""Score and correctness of every sample of a trace at each enabled exit, as the runtime computes them."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit.policy import NEVER, ExitPolicy

ROWS = 2048
"""Samples processed at a time: their logits fit the cache, and a memory-mapped trace is never read whole."""
WORKERS = 2


class Rule(NamedTuple):
    """How certainty is measured and what is predicted; see `ExitPolicy` for the values.

    `temperatures` are E numbers, or empty for 1 everywhere; `predictors` belong to the score `learned`.
    """

    score: str = "confidence"
    answer: str = "exit"
    temperatures: tuple[float, ...] = ()
    predictors: tuple[tuple[float, ...], ...] = ()


class ScoredSamples(NamedTuple):
    """Score of every sample at each of the K enabled exits, and whether the prediction there is right."""

    score: Float[ndarray, "K N"]
    right: Bool[ndarray, "K N"]

    def select_exits(self, exits: Int[ndarray, "M"]) -> "ScoredSamples":
        """Only these exits; valid if predictions do not depend on earlier exits."""
        return ScoredSamples(self.score[exits], self.right[exits])

    def select_samples(self, rows: Int[ndarray, "R"]) -> "ScoredSamples":
        """Only these samples."""
        return ScoredSamples(self.score[:, rows], self.right[:, rows])


def policy_of(
    rule: Rule, enabled: tuple[bool, ...], thresholds: tuple[float, ...] | None = None, patience: int = 1
) -> ExitPolicy:
    """A policy of this rule; without thresholds, no sample exits early."""
    return ExitPolicy(
        thresholds=(NEVER,) * len(enabled) if thresholds is None else thresholds,
        enabled=enabled,
        score=rule.score,
        temperatures=rule.temperatures,
        answer=rule.answer,
        patience=patience,
        predictors=rule.predictors,
    )


def rule_of_policy(policy: ExitPolicy) -> Rule:
    """The rule that a policy follows."""
    return Rule(policy.score, policy.answer, policy.temperatures, policy.predictors)


def looks_back(rule: Rule) -> bool:
    """Whether predictions or scores depend on which earlier exits are enabled."""
    return rule.answer != "exit" or rule.score in ("patience", "learned")


def score_samples(
    logits: Float[ndarray, "E N C"], labels: Int[ndarray, "N"], enabled: tuple[bool, ...], rule: Rule
) -> ScoredSamples:
    """Score every sample at every enabled exit by `ExitPolicy.step` itself, so that trace and runtime cannot differ.

    Raises:
        ValueError: if the rule does not fit the number of exits (see `ExitPolicy`).
    """
    policy = policy_of(rule, enabled)
    n, on = logits.shape[1], np.flatnonzero(enabled)
    score, right = np.empty((len(on), n), np.float32), np.empty((len(on), n), bool)

    def score_rows(start: int) -> None:
        rows = slice(start, start + ROWS)
        carry: dict[str, ndarray] = {}
        for place, exit in enumerate(on.tolist()):
            carry, answer, sure, _ = policy.step(carry, np.asarray(logits[exit, rows]), exit)
            score[place, rows], right[place, rows] = sure, answer.argmax(1) == labels[rows]

    if n <= ROWS:
        score_rows(0)
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(score_rows, range(0, n, ROWS)))
    return ScoredSamples(score, right)


def check_trace(logits: Float[ndarray, "E N C"]) -> None:
    """Refuse a trace that cannot be used to fit anything.

    Raises:
        ValueError: if it holds no samples, or logits that are not finite.
    """
    if logits.shape[1] == 0:
        raise ValueError("the calibration split has no samples")
    for exit in range(logits.shape[0]):
        if not np.isfinite(logits[exit].sum(dtype=np.float64)):
            raise ValueError(f"exit {exit + 1} returns logits that are not finite: the weights are damaged")
