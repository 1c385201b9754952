"""From logits to predictions: label, probability, the next best, refusals. Runs without torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.predict import Prediction
from offramp.bundle.read import Bundle
from offramp.early_exit.runtime import StepPolicy
from offramp.serve.requests import SampleResult


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The softmax of (C,) logits."""
    powers = np.exp(logits - logits.max())
    result: NDArray[np.float32] = powers / powers.sum()
    return result


def prediction(classes: Sequence[str], image: str, outcome: SampleResult) -> Prediction:
    """The prediction of one image, as `Bundle.predict` gives it."""
    shares = probabilities(outcome.logits)
    index = int(shares.argmax())
    return Prediction(
        image, classes[index], index, float(shares[index]), outcome.exit, outcome.ms, at_deadline=outcome.late
    )


def top(classes: Sequence[str], logits: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    """The most probable classes of one image, the first ones first."""
    shares = probabilities(logits)
    order = np.argsort(-shares, kind="stable")[:count]
    return [
        {"label": classes[index], "class": int(index), "probability": float(shares[index])} for index in order.tolist()
    ]


def all_exits(bundle: Bundle, inputs: NDArray[np.float32]) -> list[tuple[int, NDArray[np.float32], Any, Any, Any]]:
    """Every enabled exit on (B, ...) inputs, whatever the policy decides.

    Returns:
        Per exit: its index among all E exits, its logits (B, C), and of the policy the answer's logits (B, C), the
        score (B,) and whether a sample would leave there (B,).
    """
    policy: StepPolicy = bundle.policy
    state: Any = inputs
    carry: Any = ()
    policy_carry: dict[str, Any] = {}
    result = []
    for part, segment in zip(bundle.manifest.parts, bundle.segments, strict=True):
        state, carry, logits = segment(state, carry)
        policy_carry, answer, score, leaves = policy.step(policy_carry, logits, part.exit)
        result.append((part.exit, logits, answer, score, leaves))
    return result
