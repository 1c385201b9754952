"""Milliseconds of every stage and every exit on this device, in this precision, at one batch size."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from offramp.early_exit.fixed_stay import FixedStay, step_once
from offramp.early_exit.policy import ExitPolicy, PolicyCarry
from offramp.measure.cost import Pieces
from offramp.measure.timing import side_by_side
from offramp.net import MultiExitNet
from offramp.outputs import Carry, State
from offramp.protocols import is_chained

ROUNDS = 15
StageExit = tuple[int, int]
"""A segment, by its first stage and its exit, both from 0."""


def spans_as_run(ms: Mapping[StageExit, float], enabled: Sequence[bool]) -> list[float]:
    """The milliseconds of every segment of a choice of exits; one number per enabled exit, the final one included."""
    ends = [exit + 1 for exit, flag in enumerate(enabled) if flag]
    return [ms[begin, end - 1] for begin, end in zip([0, *ends], ends)]


def piece_ms(net: MultiExitNet, inputs: torch.Tensor, policy: ExitPolicy, rounds: int = ROUNDS) -> Pieces:
    """Milliseconds per sample of every stage, and of every branch including the policy's decision.

    The time of an early branch includes its layers, the score, and the selection of samples that continue (all but
    one); that of the final branch its layers and the score. Medians over rounds in which all parts take turns.

    Args:
        inputs: one batch (B, channels, height, width) on the network's device; call this in inference mode and under
            the desired autocast.
        policy: its score and answer are used, its thresholds are not.
        rounds: number of timed rounds.
    """
    runs: dict[str, Callable[[], object]] = {}
    state: State = inputs
    carry: Carry = ()
    policy_carry: PolicyCarry = {}
    for exit, (stage, branch) in enumerate(zip(net.stages, net.branches, strict=True)):
        entering, state = state, stage(state)
        runs[f"stage {exit}"] = _stage(stage, entering)
        runs[f"branch {exit}"] = _branch(branch, (state, carry, policy_carry), policy, exit)
        logits, _, _, carry = branch(state, carry)
        policy_carry = policy.step(policy_carry, logits, exit)[0]
    per_sample = 1000 / len(inputs)
    ms = {
        name: per_sample * median(seconds) for name, seconds in side_by_side(runs, rounds, device=inputs.device).items()
    }
    exits = range(net.exits)
    return Pieces(
        tuple(ms[f"stage {exit}"] for exit in exits),
        tuple(ms[f"branch {exit}"] for exit in exits),
        tuple(is_chained(branch) for branch in net.branches),
    )


def _stage(stage: Any, entering: State) -> Callable[[], object]:
    return lambda: stage(entering)


def _branch(
    branch: Any, inputs: tuple[State, Carry, PolicyCarry], policy: ExitPolicy, exit: int
) -> Callable[[], object]:
    state, carry, policy_carry = inputs
    first = state[0] if isinstance(state, tuple) else state
    staying = FixedStay(policy, {exit: len(first) - 1})

    def run() -> object:
        logits, _, _, carry_after = branch(state, carry)
        return step_once(staying, policy_carry, (state, carry_after, logits), exit)

    return run
