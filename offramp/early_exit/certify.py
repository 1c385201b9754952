"""A policy with a guarantee: the cheapest one whose loss against the plain network is bounded, from held-out samples.

The samples are divided with a fixed seed. One third TUNES: it fits temperatures, selects the enabled exits and defines
the path of policies, safest first. The other two thirds CERTIFY: they decide how far along the path to go, and nothing
else. They have selected nothing before, so that both guarantees hold as stated in `offramp.early_exit.risk`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from offramp.early_exit import temperature
from offramp.early_exit.calibrate import Outcome, does
from offramp.early_exit.exit_scores import (
    Rule,
    ScoredSamples,
    check_trace,
    looks_back,
    policy_of,
    rule_of_policy,
    score_samples,
)
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.risk import conformal, fixed_sequence, samples_needed
from offramp.early_exit.score_tables import Enabled

LEVELS = 100
"""Policies on the path: levels at which 1 %, 2 %, … of the tuning samples reach the score of some early exit."""
TUNING = 1 / 3
WEIGHED = 4000
"""Maximum tuning samples on which the choices of exits are compared."""


@dataclass(frozen=True)
class Certificate:
    """A guarantee and its basis.

    Attributes:
        outcome: The policy, and its results on the certifying samples.
        plain: The accuracy of the plain network on the same samples.
        risk: The bound on the share of samples that the plain network gets right and the policy wrong.
        delta: With this probability over the draw of the samples the bound may fail; None if it is on the
            expectation (conformal risk control).
        samples: Number of certifying samples.
        tuning: Number of samples that tune.
        lost: Number of certifying samples that the policy loses.
        path: Number of policies on the path.
        certified: Number of these that passed.
        needed: If none passed: total number of samples that would be needed, at the safest policy's rate of loss; None
            if no number is enough, or if a policy passed.
    """

    outcome: Outcome
    plain: float
    risk: float
    delta: float | None
    samples: int
    tuning: int
    lost: int
    path: int
    certified: int
    needed: int | None


def divide(n: int) -> tuple[Int[ndarray, "T"], Int[ndarray, "M"]]:
    """The rows that tune and the rows that certify, of n; always the same for the same n.

    Raises:
        ValueError: if there are fewer than three samples.
    """
    if n < 3:
        raise ValueError(f"a bound on the risk needs samples to tune on and others to certify with, got {n} in all")
    shuffled = np.random.default_rng(n).permutation(n)
    cut = int(n * TUNING)
    return np.sort(shuffled[:cut]), np.sort(shuffled[cut:])


def certify(
    logits: Float[ndarray, "E N C"],
    labels: Int[ndarray, "N"],
    *,
    segment_costs: Mapping[Enabled, Sequence[int | float]],
    risk: float,
    delta: float | None = None,
    rule: Rule = Rule(),  # noqa: B008 (a tuple of constants)
    fit_temperatures: bool = False,
) -> Certificate:
    """The cheapest policy on a path of falling thresholds, the same at all exits, whose risk is bounded.

    The risk is the probability that the plain network (the final exit alone) is right and the policy is wrong; the
    accuracy lost is never more. If nothing can be certified, or what is certified saves nothing, the result is the
    plain network, which loses nothing.

    Args:
        risk: in (0, 1).
        delta: bound the risk with probability 1 - delta over the draw of the samples (fixed-sequence testing); None
            bounds its expectation (conformal risk control).
        fit_temperatures: fit them on the tuning part instead of using those of the rule.
        The others are as in `calibrate`.

    Raises:
        ValueError: if risk or delta are out of range, or the trace is empty or not finite.
    """
    if not 0 < risk < 1 or (delta is not None and not 0 < delta < 1):
        raise ValueError(f"risk and delta must be between 0 and 1, got {risk}" + (f" and {delta}" if delta else ""))
    check_trace(logits)
    tune, proof = divide(logits.shape[1])
    if fit_temperatures:
        rule = rule._replace(temperatures=temperature.fit(logits[:, tune], labels[tune]))
    plain = np.asarray(logits[-1]).argmax(1) == labels
    enabled, levels = _path(logits, labels, plain, tune, segment_costs, rule, risk)
    scored = score_samples(logits[:, proof], labels[proof], enabled, rule)
    taken = _taken(scored, levels)
    lost = plain[proof] & ~scored.right[taken, np.arange(len(proof))]
    counts = lost.sum(1)
    certified = fixed_sequence(counts, len(proof), risk, delta) if delta else conformal(lost, risk)
    reached = _policy(rule, enabled, float(levels[max(certified - 1, 0)]))
    outcome = does(reached, scored, _prices(segment_costs, enabled))
    whole = _plain(rule, logits.shape[0])
    unchanged = does(
        whole,
        ScoredSamples(np.ones((1, len(proof)), np.float32), plain[proof][None]),
        _prices(segment_costs, whole.enabled),
    )
    needed = None if certified else _needed(counts, len(proof), risk, delta)
    saves = bool(certified) and outcome.cost < unchanged.cost
    return Certificate(
        outcome if saves else unchanged,
        unchanged.accuracy,
        risk,
        delta,
        len(proof),
        len(tune),
        int(counts[certified - 1]) if saves else 0,
        len(levels),
        certified,
        needed,
    )


def certify_exits(
    policy: ExitPolicy,
    goal: Mapping[str, Any],
    logits: Float[ndarray, "E N C"],
    labels: Int[ndarray, "N"],
    segment_costs: Sequence[int | float],
    plain_cost: int | float | None = None,
) -> Certificate:
    """Certify new thresholds for a policy's exits, score and temperatures, on other logits than it was fitted on.

    Args:
        goal: `risk`, and `delta` if there is one.
        segment_costs: of the enabled exits.
        plain_cost: of the final exit alone; default: the sum of `segment_costs`.
    Returns:
        A certificate whose policy enables other exits than `policy` if its own cannot be certified.
    Raises:
        ValueError: as `certify`.
    """
    final_only = (*(False,) * (policy.exits - 1), True)
    plain = [sum(segment_costs) if plain_cost is None else plain_cost]
    return certify(
        logits,
        labels,
        segment_costs={policy.enabled: segment_costs, final_only: plain},
        risk=goal["risk"],
        delta=goal.get("delta"),
        rule=rule_of_policy(policy),
    )


def _needed(counts: Int[ndarray, "J"], n: int, risk: float, delta: float | None) -> int | None:
    """How many samples in all, tuning included, would certify the safest policy at the rate it loses here."""
    certifying = samples_needed(int(counts[0]) / n, risk, delta)
    return None if certifying is None else int(np.ceil(certifying / (1 - TUNING)))


def _plain(rule: Rule, exits: int) -> ExitPolicy:
    final_only = (*(False,) * (exits - 1), True)
    return replace(policy_of(rule, final_only), answer="exit", score="confidence", predictors=())


def _prices(costs: Mapping[Enabled, Sequence[int | float]], enabled: Enabled) -> Float[ndarray, "K"]:
    return np.cumsum(np.asarray(costs[enabled], float))


def _path(
    logits: ndarray,
    labels: ndarray,
    plain: Bool[ndarray, "N"],
    tune: Int[ndarray, "T"],
    costs: Mapping[Enabled, Sequence[int | float]],
    rule: Rule,
    risk: float,
) -> tuple[Enabled, Float[ndarray, "J"]]:
    """The enabled exits, the cheapest at this risk on the tuning samples, and the levels of the path."""
    rows = tune[:: max(len(tune) // WEIGHED, 1)]
    few, truth, right = logits[:, rows], labels[rows], plain[rows]
    everything = score_samples(few, truth, (True,) * logits.shape[0], rule)
    tried: list[tuple[bool, float, int, Enabled, Float[ndarray, "J"]]] = []  # of equal ones, the fewest exits
    for enabled in [enabled for enabled in costs if sum(enabled) > 1] or list(costs):
        alone = not looks_back(rule)
        scored = everything.select_exits(np.flatnonzero(enabled)) if alone else score_samples(few, truth, enabled, rule)
        levels = _levels(scored, rule)
        taken = _taken(scored, levels)
        loss = (right & ~scored.right[taken, np.arange(len(rows))]).mean(1)
        fine = np.maximum.accumulate(loss) <= risk
        price = _prices(costs, enabled)[taken].mean(1)
        value = float(price[fine].min() if fine.any() else loss[0])
        tried.append((not fine.any(), value, sum(enabled), enabled, levels))
    _, _, _, enabled, levels = min(tried, key=lambda entry: entry[:3])
    return enabled, levels


def _levels(scored: ScoredSamples, rule: Rule) -> Float[ndarray, "J"]:
    """The thresholds of all early exits along the path: falling scores, or falling patience."""
    early = len(scored.score) - 1
    if rule.score == "patience" or not early:
        return np.arange(max(early, 1), 0, -1, dtype=np.float32)
    surest = scored.score[:-1].max(0)
    sure_shares = np.arange(1, LEVELS + 1) / LEVELS
    return np.asarray(np.unique(np.quantile(surest, 1 - sure_shares).astype(np.float32))[::-1])


def _policy(rule: Rule, enabled: Enabled, level: float) -> ExitPolicy:
    """The policy with this threshold at every early exit."""
    if rule.score == "patience":
        return policy_of(rule, enabled, patience=int(level))
    return policy_of(rule, enabled, tuple(level if on else NEVER for on in (*enabled[:-1], False)))


def _taken(scored: ScoredSamples, levels: Float[ndarray, "J"]) -> Int[ndarray, "J N"]:
    """The enabled exit that every policy of the path takes for every sample."""
    last = len(scored.score) - 1
    taken = np.full((len(levels), scored.score.shape[1]), last, np.int8)
    for exit in range(last - 1, -1, -1):
        taken[scored.score[exit][None] >= levels[:, None]] = exit
    return taken
