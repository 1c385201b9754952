"""How many requests a second servers answer, in turn: the highest rate, by bisection, and that of a closed loop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from serve_processes import Machine, Served, load

FIRST = (0.5, 1.2)
"""Lowest and highest rate of the first search, as shares of the rate of a closed loop of `CLIENTS`."""
AGAIN = (0.87, 1.15)
"""The same of the other searches, as shares of the result of the first."""
CLIENTS = 16


@dataclass
class Search:
    """The highest rate (1/s) of one server for one kind of request, searched several times."""

    closed: dict[str, Any]
    bound: float
    rates: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    low: float = 0.0
    high: float = 0.0
    held: bool = False

    def begin(self) -> None:
        """Begin another search around the result so far."""
        middle, (low, high) = (median(self.rates), AGAIN) if self.rates else (self.closed["rate"], FIRST)
        self.low, self.high, self.held = low * middle, high * middle, False

    @property
    def rate(self) -> float:
        """The rate to try next."""
        return (self.low * self.high) ** 0.5

    def tell(self, result: dict[str, Any]) -> None:
        """Record whether the bound held at this rate."""
        steady = result["steady_p99_ms"]
        if not result["failed"] and steady is not None and steady <= self.bound:
            self.low, self.best, self.held = self.rate, result, True
        else:
            self.high = self.rate

    def end(self) -> None:
        """Keep the highest rate at which the bound held."""
        if self.held:
            self.rates.append(self.low)

    @property
    def highest(self) -> float | None:
        """The median of the searches; None if the bound held in none."""
        return median(self.rates) if self.rates else None


def highest_rates(
    machine: Machine,
    servers: Mapping[str, Served],
    bodies: Path,
    bound: float,
    seconds: float,
    probes: Sequence[int],
    first_seed: int = 0,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each server, the highest rate with p99 below the bound, and the latency at half of it.

    Args:
        servers: paused; only the one that is measured runs.
        bound: of `steady_p99_ms`; no request may fail.
        seconds: of every load.
        probes: how many rates each of the searches tries; all servers get the same requests in one search.
        first_seed: of the first search; each further one has the next.
    """

    def measured(kind: str, **options: Any) -> dict[str, Any]:
        return load_one(machine, servers[kind], bodies, seconds=seconds, **options)

    searches = {kind: Search(measured(kind, clients=CLIENTS), bound) for kind in servers}
    for seed, count in enumerate(probes, first_seed):
        for search in searches.values():
            search.begin()
        for _ in range(count):
            for kind, search in searches.items():
                search.tell(measured(kind, rate=search.rate, seed=seed))
        for search in searches.values():
            search.end()
    for kind, search in searches.items():
        half = measured(kind, rate=(search.highest or search.low) / 2, seed=first_seed + len(probes))
        results = {"closed_loop": search.closed, "at_highest": search.best, "at_half": half}
        yield kind, {"highest_rate": search.highest, "rates": search.rates, **results}


def closed_loops(
    machine: Machine, servers: Mapping[str, Served], bodies: Path, seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Rates (1/s) of each server, one per round, with `CLIENTS` clients that each wait for their answer.

    Servers are measured in turn, so that what changes on the machine affects all of them: the ratios of a round vary
    less than rates, and less than the results of searches.
    """
    rates: dict[str, list[float]] = {kind: [] for kind in servers}
    for _ in range(rounds):
        for kind, server in servers.items():
            rates[kind].append(load_one(machine, server, bodies, clients=CLIENTS, seconds=seconds)["rate"])
    return rates


def load_one(machine: Machine, server: Served, bodies: Path, **options: Any) -> dict[str, Any]:
    """What the load generator measured on a paused server, which runs meanwhile."""
    server.resume()
    try:
        return load(machine, server.port, bodies, **options)
    finally:
        server.pause()
