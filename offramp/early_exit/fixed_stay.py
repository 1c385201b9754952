"""A policy for benchmarks: it costs what the real one costs, but how many samples continue is fixed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import array_api_compat

from offramp.early_exit.policy import ExitPolicy, PolicyCarry, namespace
from offramp.early_exit.runtime import Stepper, resume

Array = Any


@dataclass(frozen=True)
class FixedStay:
    """As many samples continue as `staying` says, the first of the batch, whatever their scores are.

    Attributes:
        policy: computes answers and scores.
        staying: for each early exit (from 0), how many samples continue behind it; at least 1 does.
    """

    policy: ExitPolicy
    staying: Mapping[int, int]

    @property
    def enabled(self) -> tuple[bool, ...]:
        """The exits of the policy that are evaluated."""
        return self.policy.enabled

    def step(self, carry: PolicyCarry, logits: Array, exit: int) -> tuple[PolicyCarry, Array, Array, Array]:
        """As `ExitPolicy.step`, with other samples leaving."""
        carry, answer, score, leaves = self.policy.step(carry, logits, exit)
        if exit == len(self.enabled) - 1:
            return carry, answer, score, leaves
        xp, device = namespace(score), array_api_compat.device(score)
        return carry, answer, score, _leaving(xp, device, len(score), max(1, self.staying[exit]))


@lru_cache(maxsize=256)
def _leaving(xp: Any, device: Any, samples: int, staying: int) -> Array:
    """(B,) which samples leave: all but the first ones. Kept, so that benchmarks do not time it."""
    return xp.arange(samples, device=device) >= staying


def step_once(
    policy: FixedStay, policy_carry: PolicyCarry, outputs: tuple[Any, tuple[Array, ...], Array], exit: int
) -> Stepper:
    """What a `Stepper` does once a segment has run, to be timed: scores, and a batch of those that continue.

    Args:
        policy: enables the exit.
        judged: what the policy looks back at.
        outputs: (state, carry, logits) that the segment returned.
        exit: of that segment, from 0.
    """
    stepper = resume(policy, sum(policy.enabled[:exit]), outputs[0], outputs[1], policy_carry)
    stepper.advance(lambda state, carry: outputs)
    return stepper
