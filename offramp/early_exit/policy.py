"""When a sample exits: thresholds on a score of each exit's prediction, as plain JSON. Runs without torch."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import array_api_compat
import numpy as np

from offramp import finite
from offramp.argument_types import check_fields
from offramp.early_exit.learned_score import FEATURES
from offramp.early_exit.learned_score import score as learned
from offramp.text import quoted

VERSION = 1
SCORES = ("confidence", "margin", "entropy", "patience", "learned")
ANSWERS = ("exit", "arithmetic", "geometric", "sum")
NEVER = 1e8
"""A threshold that no score reaches: no sample exits (the value of MSDNet's code)."""

Array = Any
PolicyCarry = dict[str, Array]
"""What a policy carries from the enabled exits passed; every array has the batch as its first dimension."""


@dataclass(frozen=True, kw_only=True)
class ExitPolicy:
    """Samples take the first enabled exit whose score is at least its threshold, else the final exit.

    Attributes:
        thresholds: E numbers on the scale of `score`; that of the final exit is not used.
        enabled: E flags; a disabled exit is not evaluated. The final exit is always enabled.
        score: `confidence` (top probability), `margin` (top minus second), `entropy` (1 - H/log C), each in [0, 1] and
            larger for a more certain prediction, `patience` (the number of consecutive enabled exits with the same
            prediction), or `learned` (the output of `predictors`).
        temperatures: E positive numbers; divisors of each exit's logits.
        answer: the logits that are returned for a sample: those of its exit (`exit`), or of an ensemble of the enabled
            exits up to it: the `arithmetic` or `geometric` mean of probabilities, or the `sum` of logits.
        patience: with the score `patience`, the number of equal predictions at which a sample exits.
        predictors: with the score `learned`, the weights of each early exit, see `offramp.early_exit.learned_score`;
            the score of the final exit, which is not compared with a threshold, is its confidence.
    Raises:
        ValueError: if the lengths differ, a name is unknown, a number is out of range or the final exit is disabled.
    """

    thresholds: tuple[float, ...]
    enabled: tuple[bool, ...]
    score: str = "confidence"
    temperatures: tuple[float, ...] = ()
    answer: str = "exit"
    patience: int = 1
    predictors: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        exits = len(self.enabled)
        if not self.temperatures:
            object.__setattr__(self, "temperatures", (1.0,) * exits)
        lengths = (len(self.thresholds), exits, len(self.temperatures))
        if len(set(lengths)) > 1 or not exits:
            raise ValueError(
                f"a policy needs one threshold, flag and temperature per exit, got {', '.join(map(str, lengths))}"
            )
        if not self.enabled[-1]:
            raise ValueError("a policy cannot disable the final exit")
        if self.score not in SCORES or self.answer not in ANSWERS:
            raise ValueError(
                f"a policy's score is one of {', '.join(SCORES)} and its answer one of {', '.join(ANSWERS)}, "
                f"got {quoted(self.score)} and {quoted(self.answer)}"
            )
        if (
            any(not 0 < t < math.inf for t in self.temperatures)
            or self.patience < 1
            or not all(map(math.isfinite, self.thresholds))
        ):
            raise ValueError(
                "a policy needs positive temperatures, a patience of 1 or more and thresholds that are finite numbers "
                f"({NEVER:g}: no sample exits)"
            )

        self._check_predictors()

    def _check_predictors(self) -> None:
        expected = (self.exits - 1, len(FEATURES) + 1) if self.score == "learned" else (0, 0)
        numbers = [weight for weights in self.predictors for weight in weights]
        wrong = len(self.predictors) != expected[0] or any(len(each) != expected[1] for each in self.predictors)
        if wrong or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"a policy with the score {self.score} needs predictors of {expected[0]} exits, with {expected[1]} "
                "finite numbers each"
                if self.score == "learned"
                else f"a policy has predictors with the score learned only, not with {self.score}"
            )

    @property
    def exits(self) -> int:
        """E, the number of exits of the network."""
        return len(self.enabled)

    def step(self, carry: PolicyCarry, logits: Array, exit: int) -> tuple[PolicyCarry, Array, Array, Array]:
        """Score the predictions of one enabled exit, and decide which samples take it.

        Args:
            carry: returned by the previous call; {} at the first enabled exit.
            logits: (B, C), numpy or torch.
            exit: index of the exit among all E exits, counted from 0.
        Returns:
            (carry, answer logits (B, C), score (B,), leaves (B,) bool), in float32.
        """
        xp = namespace(logits)
        # always a copy, because a runtime may write its next output into the same memory
        z = logits.astype(xp.float32) if xp is np else xp.astype(logits, xp.float32)
        z = z if self.temperatures[exit] == 1 else z / self.temperatures[exit]
        carry, answer = (carry, z) if self.answer == "exit" else self._ensemble(xp, carry, z, exit)
        if self.score == "patience":
            carry, score = _agreement(xp, carry, answer)
        elif self.score == "learned" and exit < self.exits - 1:
            carry, score = learned(xp, answer, carry, self.predictors[exit])
        else:
            score = _certainty(xp, answer, "confidence" if self.score == "learned" else self.score)
        if exit == self.exits - 1:
            return carry, answer, score, xp.ones_like(score, dtype=xp.bool)
        return carry, answer, score, score >= (self.patience if self.score == "patience" else self.thresholds[exit])

    def _ensemble(self, xp: Any, carry: PolicyCarry, z: Array, exit: int) -> tuple[PolicyCarry, Array]:
        passed = sum(self.enabled[: exit + 1])
        share = z if self.answer == "sum" else _log_softmax(xp, z)
        share = xp.exp(share) if self.answer == "arithmetic" else share
        total = carry["total"] + share if "total" in carry else share
        carry = {**carry, "total": total}
        if self.answer == "sum":
            return carry, total
        return carry, total / passed if self.answer == "geometric" else xp.log(xp.clip(total / passed, 1e-30, None))

    def to_json(self, provenance: dict[str, Any] | None = None) -> str:
        """The policy as JSON text with its version, its provenance, and a digest of both."""
        fields_written = {name: value for name, value in asdict(self).items() if value or name not in LATER}
        values = {"format": "offramp-policy", "version": VERSION, **fields_written, "provenance": provenance or {}}
        values = json.loads(finite.dumps(values))
        return finite.dumps({**values, "digest": digest_of(values)}, indent=2)


def namespace(array: Array) -> Any:
    """The array API functions of an array's library; for numpy without a lookup."""
    return np if type(array) is np.ndarray else array_api_compat.array_namespace(array)


def _log_softmax(xp: Any, z: Array) -> Array:
    shifted = z - xp.max(z, axis=1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))


def _certainty(xp: Any, z: Array, score: str) -> Array:
    if score == "entropy":
        log_p = _log_softmax(xp, z)
        return 1 + xp.sum(xp.exp(log_p) * log_p, axis=1) / math.log(max(z.shape[1], 2))
    # The highest probability is 1 / sum(exp(z - max z)), the second exp(second - max z) of that: as few operations as
    # can be, because at batch 1 each costs as much as a small layer.
    if score == "confidence":
        if xp is np:
            return 1 / np.add.reduce(np.exp(z - np.maximum.reduce(z, 1, keepdims=True)), 1)
        if array_api_compat.is_torch_array(z):
            return z.softmax(1).amax(1)
    largest = xp.max(z, axis=1, keepdims=True)
    top = 1 / xp.sum(xp.exp(z - largest), axis=1)
    if score == "confidence":
        return top
    first = xp.argmax(z, axis=1, keepdims=True) == xp.arange(z.shape[1], device=array_api_compat.device(z))
    second = xp.max(xp.where(first, -xp.inf, z), axis=1)
    return top * (1 - xp.exp(second - largest[:, 0]))


def _agreement(xp: Any, carry: PolicyCarry, answer: Array) -> tuple[PolicyCarry, Array]:
    """The number of consecutive enabled exits, this one included, with this prediction."""
    prediction = xp.argmax(answer, axis=1)
    count = xp.ones_like(answer[:, 0])
    if "said" in carry:
        count = xp.where(prediction == carry["said"], carry["count"] + 1, count)
    return {**carry, "said": prediction, "count": count}, count


def digest_of(values: Mapping[str, Any]) -> str:
    """The digest of a policy's JSON: of all keys but `digest`."""
    text = json.dumps({key: value for key, value in values.items() if key != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


FIELDS = tuple(field.name for field in fields(ExitPolicy))
"""The fields of a policy, as in its JSON."""
LATER = ("predictors",)
"""Fields that are written only if they hold something, so that programs that do not know them read other policies."""
