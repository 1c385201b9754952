"""The highest rate of requests that servers answer in time, in turn: from loads at rates around it.

Bisection finds the range. Then, in every round, each server gets a load at each of the `STEPS` around its highest rate
so far, with the same requests at the same relative times as all other servers. The 99th percentile of the latency
depends on chance even in loads of 10 s and grows much faster than the rate; so each load gives an estimate of the
highest rate, and their median is the result:

    rate * (bound / p99) ** (1 / slope),    slope: d log(p99) / d log(rate), the median over all pairs of loads

Ratios of two servers are taken load by load.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from serve_processes import Machine, Served, load

FIRST = (0.5, 1.2)
"""Lowest and highest rate of the bisection, as shares of the rate of a closed loop of `CLIENTS`."""
STEPS = (0.94, 1.0, 1.06)
"""Rates of the loads of a round, as shares of the estimate so far."""
SLOPES = (2.0, 40.0)
"""Bounds of the slope; lower ones are due to chance, since the rates are close to the highest."""
MOST = 10.0
"""Percentiles count as at most so many times the bound: beyond it, they depend on how long the load lasts."""
CLIENTS = 16


@dataclass
class Search:
    """The highest rate (1/s) of one server for one kind of request.

    Args:
        closed: rate of a closed loop.
        bound: of `steady_p99_ms`, in milliseconds.
    Attributes:
        loads: the results of all rounds, with the `planned` rate of each.
    """

    closed: float
    bound: float
    loads: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.low, self.high = (share * self.closed for share in FIRST)

    @property
    def middle(self) -> float:
        """The rate that bisection tries next; once there are loads, the estimate of the highest rate."""
        return median(self.rates) if self.loads else (self.low * self.high) ** 0.5

    def bisect(self, result: dict[str, Any]) -> None:
        """Record a load at `middle`."""
        if self._p99(result) <= self.bound:
            self.low = self.middle
        else:
            self.high = self.middle

    @property
    def slope(self) -> float:
        """Of log(p99) by log(rate), the median over all pairs of loads (the estimator of Theil and Sen)."""
        points = [(math.log(each["planned"]), math.log(self._p99(each))) for each in self.loads]
        slopes = [(y - b) / (x - a) for (a, b), (x, y) in combinations(points, 2) if abs(x - a) > 0.01]
        return min(max(median(slopes), SLOPES[0]), SLOPES[1]) if slopes else SLOPES[1]

    @property
    def rates(self) -> list[float]:
        """The highest rate by each load."""
        slope = self.slope
        return [each["planned"] * (self.bound / self._p99(each)) ** (1 / slope) for each in self.loads]

    @property
    def highest(self) -> float | None:
        """The median; None if p99 was above the bound in all loads."""
        return self.middle if any(self._p99(each) <= self.bound for each in self.loads) else None

    def _p99(self, result: dict[str, Any]) -> float:
        """Milliseconds, at most `MOST` times the bound, and so many if a request failed."""
        most, p99 = MOST * self.bound, result["steady_p99_ms"]
        return most if result["failed"] or p99 is None else min(most, p99)


def highest_rates(
    machine: Machine,
    servers: Mapping[str, Served],
    bodies: Path,
    bound: float,
    seconds: float,
    probes: int,
    rounds: int,
    first_seed: int = 0,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each server, the highest rate with p99 below the bound, the latency at half of it, and closed loops.

    Args:
        servers: paused; only the one that is measured runs.
        bound: of `steady_p99_ms`; no request may fail.
        seconds: of every load.
        probes: steps of the bisection.
        rounds: of the loads at `STEPS` and of a closed loop, in which `CLIENTS` clients each wait for their answer.
        first_seed: of the requests; each further step of a round has the next.
    """

    def measured(kind: str, **options: Any) -> dict[str, Any]:
        return load_one(machine, servers[kind], bodies, seconds=seconds, **options)

    def in_turn() -> list[str]:
        kinds.append(kinds.pop(0))
        return list(kinds)

    kinds, seed = list(servers), first_seed
    searches = {kind: Search(measured(kind, clients=CLIENTS)["rate"], bound) for kind in kinds}
    closed: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(probes):
        for kind in in_turn():
            searches[kind].bisect(measured(kind, rate=searches[kind].middle, seed=first_seed))
    for _ in range(rounds):
        for kind in in_turn():
            closed[kind].append(measured(kind, clients=CLIENTS)["rate"])
        middles = {kind: search.middle for kind, search in searches.items()}
        for step in STEPS:
            seed += 1
            for kind in in_turn():
                rate = step * middles[kind]
                searches[kind].loads.append({"planned": rate, **measured(kind, rate=rate, seed=seed)})
    for kind, search in searches.items():
        half = measured(kind, rate=search.middle / 2, seed=first_seed)
        results = {"highest_rate": search.highest, "rates": search.rates, "slope": search.slope}
        yield kind, {**results, "loads": search.loads, "closed_loop_rates": closed[kind], "at_half": half}


def loads_per_server(probes: int, rounds: int) -> int:
    """How many loads `highest_rates` gives each server, closed loops included."""
    return 1 + probes + rounds * (1 + len(STEPS)) + 1


def load_one(machine: Machine, server: Served, bodies: Path, **options: Any) -> dict[str, Any]:
    """What the load generator measured on a paused server, which runs meanwhile."""
    server.resume()
    try:
        return load(machine, server.port, bodies, **options)
    finally:
        server.pause()
