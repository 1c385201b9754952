"""A policy for benchmarks: as costly as the real one, but the number of samples that continue is fixed."""

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
    """The first `staying` samples of the batch continue, whatever their scores are.

    Attributes:
        policy: computes predictions and scores.
        staying: for each early exit (from 0), the number of samples that continue; at least 1 does.
    """

    policy: ExitPolicy
    staying: Mapping[int, int]

    @property
    def enabled(self) -> tuple[bool, ...]:
        """The exits of the policy that are evaluated."""
        return self.policy.enabled

    def step(self, carry: PolicyCarry, logits: Array, exit: int) -> tuple[PolicyCarry, Array, Array, Array]:
        """As `ExitPolicy.step`, with other samples exiting."""
        carry, answer, score, leaves = self.policy.step(carry, logits, exit)
        if exit == len(self.enabled) - 1:
            return carry, answer, score, leaves
        xp, device = namespace(score), array_api_compat.device(score)
        return carry, answer, score, _leaving(xp, device, len(score), max(1, self.staying[exit]))


@lru_cache(maxsize=256)
def _leaving(xp: Any, device: Any, samples: int, staying: int) -> Array:
    """(B,) which samples exit: all but the first ones. Cached, so that benchmarks do not time it."""
    return xp.arange(samples, device=device) >= staying


def step_once(
    policy: FixedStay, policy_carry: PolicyCarry, outputs: tuple[Any, tuple[Array, ...], Array], exit: int
) -> Stepper:
    """The part of `Stepper.advance` after the segment has run, to be timed: scores, and the batch that continues.

    Args:
        policy: enables the exit.
        policy_carry: what the policy carries from earlier exits.
        outputs: (state, carry, logits) that the segment returned.
        exit: of that segment, from 0.
    """
    stepper = resume(policy, sum(policy.enabled[:exit]), outputs[0], outputs[1], policy_carry)
    stepper.advance(lambda state, carry: outputs)
    return stepper
