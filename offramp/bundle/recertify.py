"""What a policy was fitted for, checked on the files that ship: cal through the exported segments."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from offramp import finite
from offramp.bundle.read import Bundle
from offramp.data.splits import Split
from offramp.early_exit.calibrate import TooCheap, calibrate, does
from offramp.early_exit.certify import certify_exits
from offramp.early_exit.exit_scores import rule_of_policy, score_samples
from offramp.early_exit.policy import ExitPolicy

BATCH = 64


class Shipped(NamedTuple):
    """The policy to ship, and what is known of it: its goal, what it does on cal as exported, its certificate."""

    policy: ExitPolicy
    about: dict[str, Any]


def exported_trace(
    bundle: Bundle, split: Split, advance: Callable[[int], None] = lambda samples: None
) -> tuple[Float[np.ndarray, "E N C"], Int[np.ndarray, "N"]]:
    """Logits and labels of a split, computed by the exported segments; zeros at exits that are off.

    Raises:
        ValueError: if a logit is not finite.
    """
    exits, classes = bundle.manifest.exits, len(bundle.manifest.classes)
    logits = np.zeros((exits, len(split), classes), np.float32)
    for start in range(0, len(split), BATCH):
        pixels = split.source.batch(split.indices[start : start + BATCH])
        state: Any = bundle.manifest.preprocessing.normalise(pixels)
        carry: Any = ()
        for spec, segment in zip(bundle.manifest.parts, bundle.segments, strict=True):
            state, carry, logits[spec.exit, start : start + len(pixels)] = segment(state, carry)
        advance(len(pixels))
    finite.check([(f"the logits of {split.name}", logits)], "the exported segments")
    return logits, split.labels


def recertified(
    policy: ExitPolicy,
    origin: Mapping[str, Any],
    logits: Float[np.ndarray, "E N C"],
    labels: Int[np.ndarray, "N"],
    segment_costs: Sequence[int | float],
    precision: str = "float32",
) -> Shipped:
    """The policy, if it still does what it was fitted for; else one with the same exits that does.

    A certificate is made again, on the same division of cal. Exits stay as they are: their segments are written.

    Args:
        origin: what `calibrate` stored beside the policy; without a goal there is nothing to check.
        logits, labels: of cal, see `exported_trace`.
        segment_costs: in the unit of the goal.
        precision: of the exported segments: `float32`, or `int8`. Thresholds for the latter are always fitted again;
            the accuracy of a goal, and the one that `max_drop` refers to, are those of the network before.
    Raises:
        ValueError: if no policy with these exits reaches the goal with the exported segments.
    """
    goal = dict(origin.get("goal") or {})
    rule = rule_of_policy(policy)
    about: dict[str, Any] = {"goal": goal or None, "samples": len(labels), "certificate": None, "refitted": False}
    about = {"runtime": "onnxruntime", "precision": precision, **about}
    if goal.get("risk") is not None and any(policy.enabled[:-1]):
        return _certified(policy, origin, goal, logits, labels, segment_costs, about)
    plain = float((logits[-1].argmax(1) == labels).mean())
    # with a baseline, or in int8, the accuracy is that of another network, less the drop
    if "max_drop" in goal and not origin.get("baseline") and precision == "float32":
        goal["accuracy"] = max(0.0, plain - goal["max_drop"])
    unit = next((name for name in ("macs", "ms") if name in goal), None)
    outcome = does(
        policy, score_samples(logits, labels, policy.enabled, rule), np.cumsum(np.asarray(segment_costs, float))
    )
    cheap = unit is None or outcome.cost <= goal[unit] * (1 + 1e-9)
    accurate = goal.get("accuracy") is None or outcome.accuracy >= goal["accuracy"] - 1e-9
    if goal and not (cheap and accurate and precision == "float32"):
        budget = None if unit is None else goal[unit]
        checked = None if unit else goal["accuracy"]
        try:
            outcome = calibrate(
                logits,
                labels,
                segment_costs={policy.enabled: segment_costs},
                budget=budget,
                accuracy=checked,
                rule=rule,
            )
        except (TooCheap, ValueError) as error:
            raise ValueError(_missed(goal, precision, str(error))) from None
        about["refitted"] = True
    about["achieved"] = {"accuracy": outcome.accuracy, "cost": outcome.cost, "plain_accuracy": plain}
    return Shipped(outcome.policy, about)


def _certified(
    policy: ExitPolicy,
    origin: Mapping[str, Any],
    goal: dict[str, Any],
    logits: np.ndarray,
    labels: np.ndarray,
    segment_costs: Sequence[int | float],
    about: dict[str, Any],
) -> Shipped:
    """The policy with a certificate of its own."""
    plain = [value for unit, value in origin.get("plain", {}).items() if unit in ("macs", "ms")]
    certificate = certify_exits(policy, goal, logits, labels, segment_costs, plain[0] if plain else None)
    if certificate.outcome.policy.enabled != policy.enabled:
        lost = f"{certificate.lost} of {certificate.samples} certifying samples are lost"
        raise ValueError(_missed(goal, about["precision"], lost))
    values = {key: value for key, value in dataclasses.asdict(certificate).items() if key != "outcome"}
    achieved = {
        "accuracy": certificate.outcome.accuracy,
        "cost": certificate.outcome.cost,
        "plain_accuracy": certificate.plain,
    }
    return Shipped(
        certificate.outcome.policy,
        {**about, "certificate": values, "refitted": certificate.outcome.policy != policy, "achieved": achieved},
    )


def _missed(goal: Mapping[str, Any], precision: str, why: str) -> str:
    text = ", ".join(f"{name} {value:g}" for name, value in goal.items() if value is not None)
    return (
        f"the exported segments, in {precision}, no longer reach the goal ({text}): {why}; calibrate again with a "
        "goal that is easier to reach"
    )
