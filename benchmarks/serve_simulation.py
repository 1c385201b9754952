"""The scheduler of `offramp serve` on a simulated clock: early exit with new batches at every exit or whole batches.

The scheduler is that of the server; only the clock and the segments are simulated. The time of a segment is a function
of the batch size (a cost curve); every request exits at a random exit, with given probabilities. The load is an
open-loop Poisson process of single images. Reported is the highest rate at which the 99th percentile of the latency
stays below a bound, for

a. early exit with new batches at every exit (`offramp.serve.scheduler.Scheduler`),
b. early exit with whole batches: images that exit are removed from the computation, but all images of a batch are
   answered together, when the last one exits; of several sizes of the batches, the one with the highest rate,
c. the plain network with dynamic batching in the same scheduler: all images are computed to the end.

    python benchmarks/serve_simulation.py [--json]
"""

import argparse
import json
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from offramp.serve.costs import CostCurve, linear, powers
from offramp.serve.engine import OVERHEAD
from offramp.serve.scheduler import Scheduler, Work


class Request(NamedTuple):
    """Arrival in seconds and the number of segments that it passes."""

    arrival: float
    leaves: int


def load(rate: float, shares: Sequence[float], seconds: float, seed: int = 0) -> list[Request]:
    """Poisson arrivals at `rate` per second."""
    generator, now, result = random.Random(seed), 0.0, []
    for leaves in generator.choices(range(1, len(shares) + 1), shares, k=round(rate * seconds)):
        now += generator.expovariate(rate)
        result.append(Request(now, leaves))
    return result


def rebatched(requests: Sequence[Request], setting: "Setting") -> list[float]:
    """Latency of every request in seconds, by the scheduler of the server with one worker."""
    costs = setting.costs
    scheduler = Scheduler(costs, overhead=setting.assumed, most=setting.most, capacity=len(requests))
    latencies, now, index = [0.0] * len(requests), 0.0, 0
    work: Work | None = None
    while True:
        while index < len(requests) and requests[index].arrival <= now:
            scheduler.submit([index], requests[index].arrival)
            index += 1
        if work is None:
            work = scheduler.next(now).work
            now += setting.batch if work else 0.0
        if work is None:
            if index == len(requests):
                return latencies
            now = requests[index].arrival
            continue
        now += costs[work.segment](len(work.samples))
        rest = [sample for sample in work.samples if requests[sample.payload].leaves > work.segment + 1]
        leaving = [sample for sample in work.samples if sample not in rest]
        for sample in leaving:
            latencies[sample.payload] = now - requests[sample.payload].arrival
        segment = work.segment + 1
        if rest and scheduler.continues(segment, len(rest), math.inf, now):
            scheduler.finish(Work(work.segment, leaving), ())
            work = Work(segment, rest)
        else:
            scheduler.finish(Work(work.segment, leaving + rest), range(len(leaving), len(work.samples)))
            work = None


def whole_batches(requests: Sequence[Request], setting: "Setting", largest: int) -> list[float]:
    """Latency of every request in seconds, if a batch of at most `largest` is answered when its last sample is."""
    latencies, now, index = [0.0] * len(requests), 0.0, 0
    queue: deque[int] = deque()
    while index < len(requests) or queue:
        if not queue:
            now = max(now, requests[index].arrival)
        while index < len(requests) and requests[index].arrival <= now:
            queue.append(index)
            index += 1
        batch = [queue.popleft() for _ in range(min(len(queue), largest))]
        now += setting.batch
        for segment, curve in enumerate(setting.costs):
            going = sum(requests[n].leaves > segment for n in batch)
            now += curve(going) if going else 0.0
        for n in batch:
            latencies[n] = now - requests[n].arrival
    return latencies


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def highest_rate(p99: Callable[[float], float], bound: float, low: float, high: float, steps: int = 10) -> float:
    """The highest rate between two whose 99th percentile is at most the bound, by bisection."""
    for _ in range(steps):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if p99(middle) <= bound else (low, middle)
    return low


@dataclass(frozen=True)
class Setting:
    """A device and a network, and the bound of the latency.

    Attributes:
        costs: of the segments.
        shares: of the images that leave at each exit.
        most: images of the largest batch.
        bound: seconds.
        batch: seconds that a new batch takes in addition to its segments.
        assumed: the same, as the scheduler assumes it.
    """

    name: str
    costs: tuple[CostCurve, ...]
    shares: tuple[float, ...]
    most: int
    bound: float
    batch: float = 0.0
    assumed: float = 0.0


def gpu(most: int = 64) -> tuple[CostCurve, ...]:
    """Four segments as on a GPU: a call takes 1 ms, and 64 samples take about twice as long as one."""
    return tuple(linear(0.001, each, most) for each in (1.2e-5, 1.2e-5, 2e-5, 2e-5))


def cpu(most: int = 32) -> tuple[CostCurve, ...]:
    """Four segments as on a CPU: a call takes 0.05 ms, and each sample 0.7 ms or more."""
    return tuple(linear(0.00005, each, most) for each in (7e-4, 7e-4, 9e-4, 9e-4))


def lite0(times: float, most: int = 32) -> tuple[CostCurve, ...]:
    """EfficientNet-Lite0 at 96 pixels with five exits on one core of an AMD EPYC, `times` as slow."""
    sizes = powers(most)
    each_ms = (
        (0.86, 0.86, 0.81, 0.81, 0.81, 0.81),
        (0.35, 0.31, 0.28, 0.28, 0.26, 0.25),
        (0.61, 0.58, 0.52, 0.52, 0.50, 0.50),
        (0.38, 0.35, 0.28, 0.28, 0.26, 0.25),
        (0.80, 0.73, 0.60, 0.57, 0.53, 0.51),
    )
    return tuple(
        CostCurve(sizes, tuple(times * size * ms / 1000 for size, ms in zip(sizes, row, strict=True)))
        for row in each_ms
    )


SHARES = ((0.5, 0.25, 0.15, 0.1), (0.4, 0.3, 0.2, 0.1), (0.7, 0.2, 0.07, 0.03))
SETTINGS = [
    Setting(f"{name} {shares}", costs, shares, most, bound)
    for name, costs, most, bound in (("GPU", gpu(), 64, 0.05), ("CPU", cpu(), 32, 0.1))
    for shares in SHARES
]
SETTINGS += [
    Setting(f"EfficientNet-Lite0, times {times}", lite0(times), (0.35, 0.25, 0.15, 0.1, 0.15), 32, 0.1, 3e-4, OVERHEAD)
    for times in (1, 2, 4, 8)
]


@dataclass(frozen=True)
class Rates:
    """Requests per second with p99 below the bound, and p50 and p99 in ms at half of the rate of (a)."""

    setting: str
    rebatched: float
    whole: float
    plain: float
    rebatched_ms: tuple[float, float]
    whole_ms: tuple[float, float]


def measure(setting: Setting, seconds: float) -> Rates:
    """The three ways under one setting, on the same arrivals."""
    most = setting.most
    last = (*(0.0 for _ in setting.shares[1:]), 1.0)
    limit = 1 / (setting.costs[0](most) / most)

    def highest(run: Callable[[list[Request]], list[float]], shares: Sequence[float]) -> float:
        p99 = lambda rate: percentile(run(load(rate, shares, seconds)), 0.99)  # noqa: E731
        return highest_rate(p99, setting.bound, limit / 20, limit)

    early, plain = (highest(lambda each: rebatched(each, setting), shares) for shares in (setting.shares, last))
    whole = {
        size: highest(lambda each, size=size: whole_batches(each, setting, size), setting.shares)  # type: ignore[misc]
        for size in powers(most)
    }
    largest = max(whole, key=lambda size: whole[size])
    half = load(early / 2, setting.shares, seconds)
    both = [
        tuple(1000 * percentile(values, share) for share in (0.5, 0.99))
        for values in (rebatched(half, setting), whole_batches(half, setting, largest))
    ]
    return Rates(setting.name, early, whole[largest], plain, *both)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="simulated time of every load")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for setting in SETTINGS:
        rates = measure(setting, options.seconds)
        if options.json:
            print(json.dumps({**asdict(rates), "bound_ms": 1000 * setting.bound, "seconds": options.seconds}))
            continue
        print(
            f"{rates.setting:32} (a) {rates.rebatched:7.0f}/s  (b) {rates.whole:7.0f}/s  (c) {rates.plain:7.0f}/s  "
            f"a/b {rates.rebatched / rates.whole:.2f}  a/c {rates.rebatched / rates.plain:.2f}  at half: "
            f"a p50 {rates.rebatched_ms[0]:.2f} p99 {rates.rebatched_ms[1]:.2f}  "
            f"b {rates.whole_ms[0]:.2f} {rates.whole_ms[1]:.2f} ms"
        )


if __name__ == "__main__":
    main()
