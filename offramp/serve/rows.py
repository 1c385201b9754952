"""Samples of different requests as one batch of a segment, and back. Runs without torch.

Every exit decision is made by `offramp.early_exit.runtime.Stepper`; here batches are put together and taken apart.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.gpu_sessions import DeviceArray, concatenate
from offramp.early_exit.policy import PolicyCarry
from offramp.early_exit.runtime import Stepper, StepPolicy, keep, resume

Array = NDArray[Any] | DeviceArray
"""A state that segments pass on, of all samples of a batch: on the host, or on a GPU."""


class SegmentInput:
    """What a segment takes, for the samples of a batch: every array has them as its first dimension."""

    __slots__ = ("carry", "policy_carry", "state")

    def __init__(self, state: Any, carry: tuple[Array, ...] = (), policy_carry: PolicyCarry | None = None) -> None:
        self.state, self.carry, self.policy_carry = state, carry, policy_carry or {}

    def __len__(self) -> int:
        return len(self.state[0] if isinstance(self.state, tuple) else self.state)

    def rows(self, indices: Sequence[int]) -> "SegmentInput":
        """These samples; the same object if they are all."""
        if len(indices) == len(self) and list(indices) == list(range(len(self))):
            return self
        rows = np.asarray(indices)
        policy_carry = {name: value[rows] for name, value in self.policy_carry.items()}
        return SegmentInput(keep(self.state, rows), keep(self.carry, rows), policy_carry)


class SampleRow(NamedTuple):
    """One sample of a batch."""

    entering: SegmentInput
    place: int


def gather(rows: Sequence[SampleRow]) -> SegmentInput:
    """One batch of samples that may come from several."""
    parts: list[SegmentInput] = [
        entering.rows([row.place for row in group]) for entering, group in groupby(rows, attrgetter("entering"))
    ]
    if len(parts) == 1:
        return parts[0]
    states = [part.state for part in parts]
    state = _join(states) if isinstance(states[0], tuple) else concatenate(states)
    return SegmentInput(
        state, _join([part.carry for part in parts]), _join_named([part.policy_carry for part in parts])
    )


def _join(parts: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    return tuple(concatenate(column) for column in zip(*parts, strict=True))


def _join_named(parts: Sequence[Mapping[str, NDArray[Any]]]) -> PolicyCarry:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_segment(policy: StepPolicy, segment: Any, passed: int, entering: SegmentInput) -> tuple[Stepper, SegmentInput]:
    """Run one segment on a batch.

    Args:
        segment: number `passed` of the policy's segments: (state, carry) -> (state, carry, logits).
    Returns:
        The stepper, with `answer` and `alive` for the samples of the batch, and the batch of the samples that continue.
    """
    stepper = resume(policy, passed, entering.state, entering.carry, entering.policy_carry)
    stepper.advance(segment)
    return stepper, SegmentInput(stepper.state, stepper.carry, stepper.policy_carry)
