"""Measures the segments of a bundle at several batch sizes, as the server runs them. Runs without torch."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from offramp.bundle.predict import check_batch
from offramp.bundle.read import Bundle
from offramp.serve.costs import CostCurve, powers
from offramp.serve.rows import SegmentInput, run_segment

PASSES = 3
"""Passes over all batch sizes, each of which keeps its shortest times: a period in which the machine is slow thus
affects all sizes, instead of making one of them look expensive."""
ROUNDS, WARM = 3, 0.01
"""Rounds of a pass through all segments: at least so many, and up to four times as many until each segment has run for
so many seconds on average: in ONNX Runtime, the first ten calls or so take longer."""
SATURATED = 1.05
"""No larger batch is measured if the last two sizes have not divided any cost per sample by at least this factor."""
LIMIT = 0.5
"""Seconds of one batch through all segments after which no larger batch is measured."""


def measure(bundle: Bundle, most: int) -> tuple[CostCurve, ...]:
    """The cost of every segment for batches of up to `most` samples, in this process, with the policy's decisions.

    Sizes double until a batch takes longer than `LIMIT`, or two sizes in a row have brought nothing.

    Raises:
        ParameterError: if a batch of that size needs too much memory.
    """
    check_batch(bundle, most, "max_batch")
    batches, times = dict[int, list[SegmentInput]](), list[list[int | float]]()
    for size in powers(most):
        batches[size] = _inputs(bundle, size)
        times.append(_seconds(bundle, batches[size]))
        if sum(times[-1]) > LIMIT or _saturated(list(batches), times):
            break
    for _ in range(PASSES - 1):
        times = [list(map(min, before, _seconds(bundle, each))) for before, each in zip(times, batches.values())]
    return tuple(CostCurve(tuple(batches), seconds) for seconds in zip(*times))


def _saturated(sizes: list[int], times: list[list[int | float]]) -> bool:
    """Whether the last two sizes have no segment that costs less per sample than before."""
    if len(sizes) < 4:
        return False
    each = [[second / size for second in row] for size, row in zip(sizes, times)]
    before = [min(column) for column in zip(*each[:-2])]
    return all(min(column) * SATURATED > lowest for column, lowest in zip(zip(*each[-2:]), before))


def _inputs(bundle: Bundle, size: int) -> list[SegmentInput]:
    """What every segment takes, for a batch of which no sample exits."""
    noise = np.random.default_rng(0).integers(0, 256, (size, *bundle.manifest.preprocessing.shape), np.uint8)
    inputs = [SegmentInput(bundle.manifest.preprocessing.normalise(noise))]
    for passed, segment in enumerate(bundle.segments[:-1]):
        inputs.append(_onward(bundle, segment, passed, inputs[-1]))
    return inputs


def _seconds(bundle: Bundle, inputs: Sequence[SegmentInput]) -> list[int | float]:
    """Seconds of every segment for one batch: the lowest of several rounds, which other work disturbs least.

    The segments run in turn, as in the server: a segment that runs again at once finds its weights in the processor's
    caches, and small batches, which read them more often for as many samples, seem cheaper than they are.
    """
    rounds: list[list[int | float]] = []
    while len(rounds) < ROUNDS or (len(rounds) < 4 * ROUNDS and sum(map(sum, rounds)) < WARM * len(inputs)):
        rounds.append([_timed(bundle, passed, each) for passed, each in enumerate(inputs)])
    return [min(spent) for spent in zip(*rounds)]


def _timed(bundle: Bundle, passed: int, entering: SegmentInput) -> int | float:
    began = time.perf_counter()
    run_segment(bundle.policy, bundle.segments[passed], passed, entering)
    return time.perf_counter() - began


def _onward(bundle: Bundle, segment: Any, passed: int, entering: SegmentInput) -> SegmentInput:
    """What the next segment takes if no sample exits."""
    state, carry, logits = segment(entering.state, entering.carry)
    exit = bundle.manifest.parts[passed].exit
    return SegmentInput(state, carry, bundle.policy.step(entering.policy_carry, logits, exit)[0])
