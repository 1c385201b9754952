"""What every stage and every exit costs on the clock in a foreign runtime, exported as a bundle's segments are."""

import copy
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.adapt.policy import ExitPolicy, PolicyCarry
from offramp.adapt.runtime import keep
from offramp.bundle.onnx import EXAMPLE, export_segment
from offramp.bundle.sessions import ArraySegment, open_segment
from offramp.measure.cost import Image, Pieces
from offramp.measure.latency import ROUNDS
from offramp.measure.timing import side_by_side
from offramp.net import MultiExitNet, segments
from offramp.outputs import Carry, State


class _StageAlone(nn.Module):
    """A stage as a segment whose logits cost next to nothing."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, state: State, carry: Carry = ()) -> tuple[State, Carry, Tensor]:
        """(state, carry) -> (state after the stage, carry, one of its numbers for each sample (B, 1))."""
        made = self.stage(state)
        first = made[0] if isinstance(made, tuple) else made
        return made, carry, first.flatten(1)[:, :1]


def piece_ms(
    net: MultiExitNet,
    shape: Image,
    batch: int,
    policy: ExitPolicy,
    runtime: str,
    threads: int | None = None,
    rounds: int = ROUNDS,
    advance: Callable[[int], None] = lambda pieces: None,
) -> Pieces:
    """Milliseconds per sample as `offramp.measure.latency.piece_ms` answers them, in ONNX Runtime or OpenVINO.

    A branch costs what its segment takes longer than its stage alone, with judging its answer and taking the samples
    that stay out of the batch; medians of rounds in which all take turns.

    Args:
        shape: one input's (channels, height, width); batch: samples at a time.
        policy: a policy with the wanted score and answer; its thresholds do not matter.
        runtime: one of `offramp.bundle.sessions.RUNTIMES`; threads: how many it may use, all cores by default.
        advance: called with 1 after every stage that was exported.
    Raises:
        ValueError: if the network cannot be exported, or the runtime cannot read what was.
        ImportError: if a package is missing, with the command that installs it.
    """
    opened = _opened(net, shape, runtime, threads, advance)
    draw = np.random.default_rng(0)
    runs: dict[str, Callable[[], object]] = {}
    state: Any = draw.standard_normal((batch, *shape), np.float32)
    carry: Any = ()
    judged: PolicyCarry = {}
    for exit, (stage, segment) in enumerate(opened):
        given = state, carry, judged
        runs[f"stage {exit}"] = _stage(stage, state)
        runs[f"segment {exit}"] = _segment(segment, given, policy, exit)
        state, carry, logits = segment(state, carry)
        judged = policy.step(judged, logits, exit)[0]
    ms = {name: 1000 / batch * median(seconds) for name, seconds in side_by_side(runs, rounds).items()}
    exits = range(net.exits)
    return Pieces(
        tuple(ms[f"stage {exit}"] for exit in exits),
        tuple(max(0.0, ms[f"segment {exit}"] - ms[f"stage {exit}"]) for exit in exits),
        tuple(bool(getattr(branch, "chained", False)) for branch in net.branches),
    )


def _opened(
    net: MultiExitNet, shape: Image, runtime: str, threads: int | None, advance: Callable[[int], None]
) -> list[tuple[ArraySegment, ArraySegment]]:
    """Every stage alone, and with its exit."""
    net = copy.deepcopy(net).eval().float().cpu()
    state: Any = torch.zeros(EXAMPLE, *shape)
    carry: Any = ()
    made = []
    for exit, segment in enumerate(segments(net)):
        file, last = f"segment-{exit + 1}.onnx", exit == net.exits - 1
        alone, about_alone, _, _ = export_segment(
            _StageAlone(net.stages[exit]), state, (), file=file, exit=exit, last=False
        )
        whole, about_whole, state, carry = export_segment(segment, state, carry, file=file, exit=exit, last=last)
        both = open_segment(alone, about_alone, runtime, threads), open_segment(whole, about_whole, runtime, threads)
        made.append(both)
        advance(1)
    return made


def _stage(stage: ArraySegment, state: Any) -> Callable[[], object]:
    return lambda: stage(state, ())


def _segment(
    segment: ArraySegment, given: tuple[Any, Any, PolicyCarry], policy: ExitPolicy, exit: int
) -> Callable[[], object]:
    state, carry, judged = given

    def run() -> object:
        after, handed, logits = segment(state, carry)
        _, _, score, _ = policy.step(judged, logits, exit)
        if exit == policy.exits - 1 or len(score) == 1:  # of one sample, nothing is ever taken out
            return score
        (staying,) = np.nonzero(score == score)
        return keep(after, staying), keep(handed, staying)

    return run
