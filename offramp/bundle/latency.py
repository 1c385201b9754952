"""What every segment that a policy can ask for costs on the clock in a foreign runtime, exported as a bundle's are."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from offramp.bundle.merge_onnx import fuse
from offramp.bundle.onnx import export_segments
from offramp.bundle.sessions import ArraySegment, open_segment
from offramp.early_exit.fixed_stay import FixedStay, step_once
from offramp.early_exit.policy import ExitPolicy, PolicyCarry
from offramp.measure.cost import ImageShape
from offramp.measure.latency import ROUNDS, StageExit
from offramp.measure.timing import side_by_side
from offramp.net import MultiExitNet, segments


def segment_ms(
    net: MultiExitNet,
    shape: ImageShape,
    batch: int,
    policy: ExitPolicy,
    runtime: str,
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    advance: Callable[[int], None] = lambda segments: None,
) -> dict[StageExit, float]:
    """Milliseconds per sample of every segment there is for any choice of exits, in ONNX Runtime or OpenVINO.

    A foreign runtime computes a segment as one model, faster than its stages one by one, so each is timed as it would
    run: with the scores of its predictions, and the batch of samples that continue (all but one). Medians of rounds in
    which all take turns.

    Args:
        shape: one input's (channels, height, width); batch: samples at a time.
        policy: its score and answer are used, its thresholds are not.
        runtime: one of `offramp.bundle.sessions.RUNTIMES`; threads: how many it may use, all cores by default.
        rounds: how often everything is timed.
        advance: called with 1 after every exit that was exported.
    Returns:
        {(first stage, exit): milliseconds}; `offramp.measure.latency.spans_as_run` puts a choice of exits together.
    Raises:
        ValueError: if the network cannot be exported, or the runtime cannot read what was.
        ImportError: if a package is missing, with the command that installs it.
    """
    models, specs = [], []
    ready = segments(copy.deepcopy(net).eval().float().cpu())
    for model, spec in export_segments(ready, range(net.exits), shape):
        models.append(model)
        specs.append(spec)
        advance(1)

    def opened(begin: int, end: int) -> ArraySegment:
        return open_segment(*fuse(models[begin:end], specs[begin:end]), runtime, threads)

    spans = {(begin, end - 1): opened(begin, end) for begin, end in combinations(range(net.exits + 1), 2)}
    staying = FixedStay(policy, dict.fromkeys(range(net.exits), batch - 1))
    entering = _entering([spans[exit, exit] for exit in range(net.exits)], shape, batch, policy)
    runs = {
        f"{begin} {exit}": partial(_run, run, entering[begin], staying, exit) for (begin, exit), run in spans.items()
    }
    seconds = side_by_side(runs, rounds)
    return {(begin, exit): 1000 / batch * median(seconds[f"{begin} {exit}"]) for begin, exit in spans}


_Entering = tuple[Any, Any, PolicyCarry]


def _entering(each: Sequence[ArraySegment], shape: ImageShape, batch: int, policy: ExitPolicy) -> list[_Entering]:
    """State, carry and what the policy looks back at, as they come to every stage."""
    state: Any = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    carry: Any = ()
    policy_carry: PolicyCarry = {}
    inputs: list[_Entering] = []
    for exit, segment in enumerate(each):
        inputs.append((state, carry, policy_carry))
        state, carry, logits = segment(state, carry)
        policy_carry = policy.step(policy_carry, logits, exit)[0]
    return inputs


def _run(segment: ArraySegment, inputs: _Entering, policy: FixedStay, exit: int) -> object:
    state, carry, policy_carry = inputs
    outputs = segment(state, carry)
    return step_once(policy, policy_carry, outputs, exit)
