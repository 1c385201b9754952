"""Answers that leave early: finished samples leave the batch, the rest goes on. Runs without torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import array_api_compat

from offramp.adapt.policy import ExitPolicy, PolicyCarry

Array = Any


class Answer(NamedTuple):
    """What each sample was answered, in the order of the inputs.

    logits (B, C) as the policy gives them; exit (B,) 0-based among all E exits; score (B,) at that exit.
    """

    logits: Array
    exit: Array
    score: Array


class Stepper:
    """A batch on its way through the segments: resumable after every exit, with the best answer so far at hand."""

    def __init__(self, policy: ExitPolicy, inputs: Array) -> None:
        self.policy = policy
        self.exits = [exit for exit, on in enumerate(policy.enabled) if on]
        self.passed = 0
        self.state: Any = inputs
        self.carry: tuple[Array, ...] = ()
        self.judged: PolicyCarry = {}
        self.alive: Array | None = None
        self.answer: Answer | None = None

    @property
    def done(self) -> bool:
        """Whether every sample has left."""
        return self.passed == len(self.exits) or (self.alive is not None and self.alive.shape[0] == 0)

    def advance(self, segment: Any) -> None:
        """Run the next segment on the samples still here, and let those leave that may."""
        exit = self.exits[self.passed]
        self.state, self.carry, logits = segment(self.state, self.carry)
        self.judged, given, score, leaves = self.policy.step(self.judged, logits, exit)
        xp = array_api_compat.array_namespace(given)
        here = xp.full(score.shape, exit, dtype=xp.int64, device=array_api_compat.device(given))
        if self.answer is None or self.alive is None:
            self.answer = Answer(given, here, score)
            self.alive = xp.arange(given.shape[0], device=array_api_compat.device(given))
        else:
            for all_samples, these in zip(self.answer, (given, here, score), strict=True):
                all_samples[self.alive] = these
        self.passed += 1
        if not bool(xp.any(leaves)):
            return
        (staying,) = xp.nonzero(~leaves)
        self.alive = self.alive[staying]
        if staying.shape[0]:
            self.state = _take(self.state, staying)
            self.carry = _take(self.carry, staying)
            self.judged = {name: value[staying] for name, value in self.judged.items()}


def answer(segments: Sequence[Any], policy: ExitPolicy, inputs: Array) -> Answer:
    """Answer every sample at the first enabled exit that is sure enough of it.

    Args:
        segments: one callable per enabled exit, (state, carry) -> (state, carry, logits); see `offramp.net.segments`.
        policy: which exits are enabled and when a sample may leave.
        inputs: (B, ...), numpy or torch, whatever the segments take.
    Raises:
        ValueError: if there is not one segment per enabled exit.
    """
    if len(segments) != sum(policy.enabled):
        raise ValueError(f"the policy enables {sum(policy.enabled)} exits, but there are {len(segments)} segments")
    stepper = Stepper(policy, inputs)
    for segment in segments:
        stepper.advance(segment)
        if stepper.done:
            break
    assert stepper.answer is not None
    return stepper.answer


def _take(state: Any, rows: Array) -> Any:
    return tuple(part[rows] for part in state) if isinstance(state, tuple) else state[rows]
