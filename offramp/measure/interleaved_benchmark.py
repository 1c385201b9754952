"""The plain network, all exits and early exit, timed in turn in every runtime on the same real images."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from offramp.early_exit.fixed_stay import FixedStay
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import Stepper, answer
from offramp.measure.runner import Runner

MIN_GROUPS = 5
"""Minimum groups of rounds for every batch size, whatever the time limit."""

PROBE = (8, 64)
"""(batches, images in each) that show, before anything is timed, how many samples reach each segment."""

GROUP_IMAGES = 16
"""Images per group: consecutive rounds of one runner, at least one; fewer if `MIN_GROUPS` would take too long."""

WAYS = ("plain", "all", "adaptive", "off")
SEGMENTS = "segments"
"""In addition to the variants: every enabled segment alone."""


@dataclass
class _Times:
    """Seconds of every round, of each variant and each enabled segment, and the share of samples that reached each.

    `inputs` took the pixels of a batch to become inputs on the device.

    A segment is timed with `sizes` samples: the number expected to reach it, at least 1.
    """

    sizes: tuple[int, ...]
    ways: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    segments: list[list[float]] = field(default_factory=list)
    reached: list[list[float]] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)


def random_batches(pixels: np.ndarray, batch: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Endless batches in random order: every image is drawn once before any is drawn again.

    Raises:
        ValueError: if there are no images.
    """
    if not len(pixels):
        raise ValueError("there are no images to measure on")
    generator = np.random.default_rng(seed)
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, generator.permutation(len(pixels))])
        yield pixels[waiting[:batch]]
        waiting = waiting[batch:]


def run_interleaved(
    runners: Sequence[Runner], policy: ExitPolicy, pixels: np.ndarray, batch: int, seconds: float, seed: int = 0
) -> dict[str, Any]:
    """Time the variants of all runners in turn, in a new random order in every round, each round on other images.

    Each runner starts with an untimed run of its plain network, because for some milliseconds the threads of the
    previous runtime still spin and occupy cores; then it has several rounds of small batches in a row.

    Args:
        pixels: the images to draw batches from, (N, channels, height, width) as uint8.
        batch: images per batch.
        seconds: total time; at least `MIN_GROUPS` groups are timed.
    Returns:
        `batch`, `rounds`, and the result of `_report` for each runtime.
    Raises:
        ValueError: if there are no runners or no images.
    """
    if not runners:
        raise ValueError("there is no runtime to measure")
    batches, order = random_batches(pixels, batch, seed), random.Random(seed)
    for runner in runners:
        _capture(runner, next(batches))
    sizes = {runner.name: _sizes(runner, policy, pixels, batch, seed) for runner in runners}
    for _ in range(2):
        began = time.perf_counter()
        _time_group(runners, policy, [next(batches)], order, {name: _Times(size) for name, size in sizes.items()})
    fits = int(seconds / MIN_GROUPS / (time.perf_counter() - began))
    group = max(1, min(GROUP_IMAGES // batch, fits))
    times = {name: _Times(size) for name, size in sizes.items()}
    began, rounds = time.perf_counter(), 0
    while rounds < MIN_GROUPS * group or time.perf_counter() - began < seconds:
        _time_group(runners, policy, list(islice(batches, group)), order, times)
        rounds += group
    reports = {
        runner.name: {"device": runner.device, **_report(times[runner.name], policy, batch)} for runner in runners
    }
    return {"batch": batch, "rounds": rounds, "runtimes": reports}


def _capture(runner: Runner, pixels: np.ndarray) -> None:
    """Capture all graphs of early exit, which takes longer than to run them: no round that is timed may do that."""
    if runner.graphed is not None:
        with runner.scope():
            runner.graphed.prepare(runner.to_inputs(pixels))


def _sizes(runner: Runner, policy: ExitPolicy, pixels: np.ndarray, batch: int, seed: int) -> tuple[int, ...]:
    """The number of samples of a batch expected to reach each enabled segment, at least 1."""
    rounds, images = PROBE
    reached = []
    for probe in islice(random_batches(pixels, images, seed), rounds):
        with runner.scope():
            reached.append(_reached(policy, answer(runner.segments, policy, runner.to_inputs(probe)).exit.tolist()))
    return tuple(max(1, round(batch * share)) for share in np.mean(reached, axis=0).tolist())


def _reached(policy: ExitPolicy, exits: Sequence[int]) -> list[float]:
    """The share of samples that reached each enabled exit."""
    return [sum(taken >= exit for taken in exits) / len(exits) for exit, on in enumerate(policy.enabled) if on]


def _time_group(
    runners: Sequence[Runner],
    policy: ExitPolicy,
    batches: Sequence[np.ndarray],
    order: random.Random,
    times: dict[str, _Times],
) -> None:
    """Time every variant of every runner once on each batch; all runners get the same batches."""
    for runner in order.sample(runners, len(runners)):
        with runner.scope():
            for place, pixels in enumerate(batches):
                runner.wait()
                began = time.perf_counter()
                inputs = runner.to_inputs(pixels)
                runner.wait()
                times[runner.name].inputs.append(time.perf_counter() - began)
                if not place:
                    _run_segment(runner.plain, inputs)
                _time_round(runner, policy, inputs, order, times[runner.name])


def _time_round(runner: Runner, policy: ExitPolicy, inputs: Any, order: random.Random, times: _Times) -> None:
    """Time every variant of one runner once, on one batch."""
    ways = _ways(runner, policy)
    names = [*ways, SEGMENTS]
    for name in order.sample(names, len(names)):
        if name == SEGMENTS:
            times.segments.append(_time_segments(runner, policy, inputs, times.sizes))
            continue
        runner.wait()
        began = time.perf_counter()
        result = ways[name](inputs)
        runner.wait()
        times.ways[name].append(time.perf_counter() - began)
        if name == "adaptive":
            exits = result.exit.tolist()
            times.reached.append(_reached(policy, exits))
            times.exits += exits


def _ways(runner: Runner, policy: ExitPolicy) -> Mapping[str, Callable[[Any], Any]]:
    off = replace(policy, enabled=(*(False for _ in policy.enabled[1:]), True))
    return {
        "plain": partial(_run_segment, runner.plain),
        "all": lambda inputs: _all_logits(runner.everything, inputs),
        "adaptive": runner.graphed or (lambda inputs: answer(runner.segments, policy, inputs)),
        "off": lambda inputs: answer([runner.plain], off, inputs),
        **{_rival_key(name): partial(_run_segment, network) for name, network in runner.rivals.items()},
    }


def _rival_key(name: str) -> str:
    return f"rival {name}"


def _run_segment(segment: Any, inputs: Any) -> Any:
    return segment(inputs, ())


def _all_logits(segments: Sequence[Any], state: Any) -> list[Any]:
    """The logits of all exits, of all samples."""
    carry: Any = ()
    logits = []
    for segment in segments:
        state, carry, exit_logits = segment(state, carry)
        logits.append(exit_logits)
    return logits


def _time_segments(runner: Runner, policy: ExitPolicy, inputs: Any, sizes: Sequence[int]) -> list[float]:
    """Seconds of every enabled segment for `sizes` samples: a whole step of the runtime, and its setup."""
    if runner.graphed is not None:
        return [_time_graph(runner, place, size, inputs) for place, size in enumerate(sizes)]
    early = [exit for exit, on in enumerate(policy.enabled[:-1]) if on]
    staying = FixedStay(policy, dict(zip(early, sizes[1:], strict=True)))
    seconds = []
    runner.wait()
    began = time.perf_counter()
    stepper = Stepper(staying, inputs)
    for segment in runner.segments:
        stepper.advance(segment)
        runner.wait()
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return seconds


def _time_graph(runner: Runner, place: int, samples: int, inputs: Any) -> float:
    """Seconds of one enabled segment with the policy in its graph."""
    assert runner.graphed is not None
    step = runner.graphed.alone(place, samples, inputs)
    runner.wait()
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _report(times: _Times, policy: ExitPolicy, batch: int) -> dict[str, Any]:
    """Latency and throughput of every variant; the speed-up of early exit, measured and predicted from the segments.

    `inputs_ms` of a batch, to copy its pixels to the device and to normalise them, belongs to none of the variants.

    The cost of a segment is its time per sample for the number of samples that is expected to reach it
    (`segment_samples`), because a small batch takes more time per sample than a large one.

    Ratios are of means over the same rounds (at batch 1 easy images finish early, so medians would mislead), except
    `off_of_plain`, the median of the rounds' ratios.
    """
    ways = {way: _latency(times.ways[way], batch) for way in WAYS}
    rivals = {way.removeprefix(_rival_key("")): way for way in times.ways if way not in WAYS}
    costs = np.divide(np.mean(times.segments, axis=0), times.sizes)
    predicted = batch * float((costs * np.mean(times.reached, axis=0)).sum())
    plain, adaptive = (float(np.mean(times.ways[way])) for way in ("plain", "adaptive"))
    off = np.divide(times.ways["off"], times.ways["plain"])
    exits = len(policy.enabled)
    return {
        **ways,
        "inputs_ms": 1000 * float(np.median(times.inputs)),
        "shares": [times.exits.count(exit) / len(times.exits) for exit in range(exits)],
        "segment_ms": (1000 * costs).tolist(),
        "segment_samples": list(times.sizes),
        "speedup": plain / adaptive,
        "predicted": plain / predicted,
        "of_predicted": predicted / adaptive,
        "off_of_plain": float(np.median(off)),
        "rivals": {name: _latency(times.ways[way], batch) for name, way in rivals.items()},
        "rival_speedup": {name: float(np.mean(times.ways[way])) / adaptive for name, way in rivals.items()},
    }


def _latency(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Milliseconds per batch, and images per second."""
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
    mean = float(np.mean(seconds))
    return {"p50": p50, "p95": p95, "p99": p99, "mean": 1000 * mean, "images_per_second": batch / mean}
