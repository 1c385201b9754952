"""What a server counts while it runs: requests, exits, batches, latencies, scores. Runs without torch."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence

LOG = logging.getLogger(__name__)
LATENCIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the buckets of latencies, in seconds."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts by bucket, as Prometheus has them: a value counts in the first bucket whose bound is not below it."""

    def __init__(self, bounds: Sequence[int | float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: int | float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


def no_listener(exit: int, score: int | float) -> None:
    """A listener that does nothing."""


class Statistics:
    """The counters of one bundle; written by its engine alone, read at any time.

    Attributes:
        answered: number of samples that exited at each of the E exits.
        late: how many of them reached their deadline before the policy let them exit.
        failed: samples whose segment failed.
        latencies: seconds from arrival to answer, per exit.
        batches: sizes of the batches of every segment; `seconds` that they took.
        listener: called with the exit (counted from 0) and the score of every sample that the policy let exit.
    """

    def __init__(self, exits: int, segments: int) -> None:
        self.answered, self.late, self.failed = [0] * exits, [0] * exits, 0
        self.latencies = [Histogram(LATENCIES) for _ in range(exits)]
        self.batches = [Histogram(BATCHES) for _ in range(segments)]
        self.seconds = [0.0] * segments
        self.listener: Callable[[int, int | float], None] = no_listener

    def ran(self, segment: int, samples: int, seconds: int | float) -> None:
        """Count a batch."""
        self.batches[segment].add(samples)
        self.seconds[segment] += seconds

    def answer(self, exit: int, late: bool, latency: int | float, score: int | float) -> None:
        """Count an answer."""
        self.answered[exit] += 1
        self.late[exit] += late
        self.latencies[exit].add(latency)
        if not late:
            try:
                self.listener(exit, score)
            except Exception:  # the thread that computes must not end for it
                LOG.exception("the score %r of exit %d could not be examined", score, exit + 1)
