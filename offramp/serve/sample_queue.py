"""Samples that wait for a segment, in the order in which they are due. Runs without torch."""

import math
from heapq import heappop, heappush
from itertools import count
from typing import Any

PATIENCE = 1.0
"""Seconds in which a sample without a deadline gathers the pressure that one with a deadline has when it is due."""


class Sample:
    """One sample on its way.

    Attributes:
        payload: what the driver keeps with it.
        arrived: when it counts as arrived, in seconds: the images of a large request come one after the other, as far
            apart as their computation takes, so that a large request does not hold up small ones.
        deadline: when it should be answered at the latest, or None.
        passed: how many segments it has passed.
    """

    __slots__ = ("arrived", "deadline", "passed", "payload")

    def __init__(self, payload: Any, arrived: int | float, deadline: int | float | None) -> None:
        self.payload, self.arrived, self.deadline, self.passed = payload, arrived, deadline, 0

    @property
    def due(self) -> int | float:
        """When its pressure is 1, in seconds."""
        return self.arrived + PATIENCE if self.deadline is None else self.deadline

    def pressure(self, now: int | float) -> int | float:
        """Its waiting time as a share of the time that it has."""
        return max(0.0, now - self.arrived) / max(1e-6, self.due - self.arrived)


class SampleQueue:
    """Samples in the order in which they are due; those with a deadline also by themselves."""

    def __init__(self) -> None:
        self._dated: list[tuple[int | float, int, Sample]] = []
        self._others: list[tuple[int | float, int, Sample]] = []
        self._number = count()

    def __len__(self) -> int:
        return len(self._dated) + len(self._others)

    def add(self, sample: Sample) -> None:
        """Take a sample in; of equal ones, the first stays first."""
        heappush(self._others if sample.deadline is None else self._dated, (sample.due, next(self._number), sample))

    @property
    def deadline(self) -> int | float:
        """The earliest deadline; infinite if there is none."""
        return self._dated[0][0] if self._dated else math.inf

    @property
    def first(self) -> Sample:
        """The sample that is due first."""
        return self._fuller()[0][2]

    def pop(self) -> Sample:
        """Remove the sample that is due first."""
        return heappop(self._fuller())[2]

    def pop_dated(self) -> Sample:
        """Remove the sample with the earliest deadline."""
        return heappop(self._dated)[2]

    def _fuller(self) -> list[tuple[int | float, int, Sample]]:
        """The heap whose first sample is due first."""
        if not self._dated or (self._others and self._others[0][:1] < self._dated[0][:1]):
            return self._others
        return self._dated
