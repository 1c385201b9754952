"""The early-exit loop: samples that exit leave the batch, the others continue. Runs without torch."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import array_api_compat
import numpy as np

from offramp.early_exit.policy import ExitPolicy, PolicyCarry, namespace

Array = Any


class Answer(NamedTuple):
    """The result of each sample, in the order of the inputs.

    `logits` (B, C) of the exit or of an ensemble, as the policy specifies; `exit` (B,), counted from 0 among all E
    exits; `score` (B,) at that exit.
    """

    logits: Array
    exit: Array
    score: Array


@runtime_checkable
class StepPolicy(Protocol):
    """The interface of a policy that the loop uses; `ExitPolicy` decides by scores."""

    @property
    def enabled(self) -> tuple[bool, ...]:
        """E flags: the exits that are evaluated."""

    def step(self, carry: PolicyCarry, logits: Array, exit: int) -> tuple[PolicyCarry, Array, Array, Array]:
        """As `ExitPolicy.step`."""


class Stepper:
    """A batch in the loop: resumable after every exit, with the best results so far in `answer`."""

    def __init__(self, policy: StepPolicy, inputs: Array) -> None:
        self.policy = policy
        self.exits = [exit for exit, on in enumerate(policy.enabled) if on]
        self.passed = 0
        self.state: Any = inputs
        self.carry: tuple[Array, ...] = ()
        self.policy_carry: PolicyCarry = {}
        self.answer: Answer | None = None
        self.done = False  # whether every sample has exited
        self._rows: Array | None = None  # samples that continue; None: all

    @property
    def alive(self) -> Array:
        """(A,) indices of the samples that have not exited.

        Raises:
            ValueError: if no exit was passed yet.
        """
        if self.answer is None:
            raise ValueError("no segment has run yet: call advance first")
        if self.done:
            return self.answer.exit[:0]
        if self._rows is not None:
            return self._rows
        exits = self.answer.exit
        return namespace(exits).arange(len(exits), device=array_api_compat.device(exits))

    def advance(self, segment: Any) -> None:
        """Run the next segment on the remaining samples, and remove those that exit.

        Args:
            segment: (state, carry) -> (state, carry, logits).
        Raises:
            ValueError: if every sample has exited.
        """
        if self.done:
            raise ValueError("every sample has exited: there is nothing to advance")
        exit = self.exits[self.passed]
        self.state, self.carry, logits = segment(self.state, self.carry)
        self.policy_carry, answer_logits, score, leaves = self.policy.step(self.policy_carry, logits, exit)
        xp = namespace(answer_logits)
        if self._rows is None:  # no sample has exited before: the results are complete
            self.answer = Answer(answer_logits, _everyone(xp, score, exit), score)
        else:
            assert self.answer is not None
            self.answer.logits[self._rows], self.answer.score[self._rows] = answer_logits, score
            self.answer.exit[self._rows] = exit
        self.passed += 1
        if self.passed == len(self.exits):
            self.done = True
        elif len(answer_logits) == 1:  # no search: at batch 1 each operation costs as much as a small layer
            self.done = bool(leaves)
        else:
            staying = xp.nonzero(~leaves)[0]
            self.done = not len(staying)
            if 0 < len(staying) < len(answer_logits):
                self._rows = staying if self._rows is None else self._rows[staying]
                self.state, self.carry, self.policy_carry = _onward(self.state, self.carry, self.policy_carry, staying)


def _onward(
    state: Any, carry: tuple[Array, ...], policy_carry: PolicyCarry, rows: Array
) -> tuple[Any, tuple[Array, ...], PolicyCarry]:
    """State, carry and policy carry of these rows only."""
    return keep(state, rows), keep(carry, rows), {name: value[rows] for name, value in policy_carry.items()}


def _everyone(xp: Any, score: Array, exit: int) -> Array:
    """(B,) the same exit for all; numpy's own `full_like` takes three times as long for few samples."""
    if xp is not np:
        return xp.full_like(score, exit, dtype=xp.int64)
    filled = np.empty(score.shape, np.int64)
    filled.fill(exit)
    return filled


def resume(policy: StepPolicy, passed: int, state: Any, carry: tuple[Array, ...], policy_carry: PolicyCarry) -> Stepper:
    """A stepper that continues after `passed` segments, perhaps from another machine.

    Args:
        state, carry, policy_carry: those of the other stepper, of the samples that have not exited.
    """
    stepper = Stepper(policy, state)
    stepper.passed, stepper.carry, stepper.policy_carry = passed, carry, policy_carry
    return stepper


def answer(
    segments: Sequence[Any], policy: ExitPolicy, inputs: Array, *, deadline_ms: int | float | None = None
) -> Answer:
    """Predict every sample at the first enabled exit whose score reaches its threshold.

    Args:
        segments: one callable per enabled exit, (state, carry) -> (state, carry, logits); see `offramp.net.segments`.
        policy: which exits are enabled and when a sample exits.
        inputs: (B, ...), numpy or torch, whatever the segments take.
        deadline_ms: no segment but the first starts once this many milliseconds have passed since the call; the
            remaining samples get the result of the last exit they passed. The call exceeds the deadline by at most one
            segment.
    Raises:
        ValueError: if there is not one segment per enabled exit, or the deadline is not a positive number.
    """
    began = time.perf_counter()
    if deadline_ms is not None and not deadline_ms > 0:
        raise ValueError(f"deadline_ms must be positive, got {deadline_ms}")
    if len(segments) != sum(policy.enabled):
        raise ValueError(f"the policy enables {sum(policy.enabled)} exits, but there are {len(segments)} segments")
    stepper = Stepper(policy, inputs)
    for segment in segments:
        stepper.advance(segment)
        if stepper.done or (deadline_ms is not None and 1000 * (time.perf_counter() - began) >= deadline_ms):
            break
    assert stepper.answer is not None
    return stepper.answer


def keep(state: Any, rows: Array) -> Any:
    """These rows of an array, or of every array of a tuple; torch maps keep their memory format."""
    return tuple(_rows_of(part, rows) for part in state) if isinstance(state, tuple) else _rows_of(state, rows)


def _rows_of(array: Array, rows: Array) -> Array:
    if type(array) is np.ndarray or not array_api_compat.is_torch_array(array):
        return array[rows]
    # Plain indexing takes five times as long, and `index_select` alone does not keep channels_last.
    if array.ndim == 4 and array.stride(1) == 1:
        return array.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return array.index_select(0, rows)
