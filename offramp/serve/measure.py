"""Measures the segments of a bundle at several batch sizes, as the server runs them. Runs without torch."""

import time
from typing import Any

import numpy as np

from offramp.bundle.predict import check_batch
from offramp.bundle.read import Bundle
from offramp.serve.costs import USEFUL, CostCurve, powers
from offramp.serve.rows import SegmentInput, run_segment

ROUNDS, WARM = 5, 0.03
"""A segment runs at least so many times, and up to four times as many until it has run for so many seconds: in ONNX
Runtime, the first ten calls or so take longer."""
LIMIT = 0.5
"""Seconds of one batch through all segments after which no larger batch is measured."""


def measure(bundle: Bundle, most: int) -> tuple[CostCurve, ...]:
    """The cost of every segment for batches of up to `most` samples, in this process, with the policy's decisions.

    Sizes double until a batch takes longer than `LIMIT`, or two sizes in a row have brought nothing.

    Raises:
        ParameterError: if a batch of that size needs too much memory.
    """
    check_batch(bundle, most)
    sizes: list[int] = []
    times: list[list[int | float]] = []
    for size in powers(most):
        sizes.append(size)
        times.append(_seconds(bundle, size))
        if sum(times[-1]) > LIMIT or _saturated(sizes, times):
            break
    return tuple(CostCurve(tuple(sizes), seconds) for seconds in zip(*times))


def _saturated(sizes: list[int], times: list[list[int | float]]) -> bool:
    """Whether the last two sizes have no segment that costs less per sample than before."""
    if len(sizes) < 4:
        return False
    each = [[second / size for second in row] for size, row in zip(sizes, times)]
    before = [min(column) for column in zip(*each[:-2])]
    return all(min(column) * USEFUL > lowest for column, lowest in zip(zip(*each[-2:]), before))


def _seconds(bundle: Bundle, size: int) -> list[int | float]:
    """Seconds of every segment for one batch size: the lowest of several runs, which other work disturbs least."""
    shape = bundle.manifest.preprocessing.shape
    noise = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
    entering = SegmentInput(bundle.manifest.preprocessing.normalise(noise))
    result = []
    for passed, segment in enumerate(bundle.segments):
        spent: list[int | float] = []
        while len(spent) < ROUNDS or (len(spent) < 4 * ROUNDS and sum(spent) < WARM):
            began = time.perf_counter()
            run_segment(bundle.policy, segment, passed, entering)
            spent.append(time.perf_counter() - began)
        result.append(min(spent))
        entering = _onward(bundle, segment, passed, entering)
    return result


def _onward(bundle: Bundle, segment: Any, passed: int, entering: SegmentInput) -> SegmentInput:
    """What the next segment takes if no sample exits."""
    state, carry, logits = segment(entering.state, entering.carry)
    exit = bundle.manifest.parts[passed].exit
    return SegmentInput(state, carry, bundle.policy.step(entering.policy_carry, logits, exit)[0])
