"""Batches that run, and the results that wait for others. Runs without torch."""

import math
from collections.abc import Collection, Iterable

from offramp.bundle.read import Bundle
from offramp.early_exit.runtime import Stepper, resume
from offramp.serve.requests import Request, Ticket
from offramp.serve.rows import SampleRow, SegmentInput, gather
from offramp.serve.sample_queue import Sample
from offramp.serve.scheduler import Work

HELD, HELD_SHARE = 5e-3, 0.25
"""For how long results wait for others while the thread computes without a pause: for the next batch, at most this
share of the time since they were submitted; for the rest of their own batch, at least so many seconds. Handing them
over wakes the event loop, and the clients send their next requests, which, on a shared core, interrupts the segments,
and costs less for several requests at once."""


class RunningBatch:
    """A batch on its way, with one stepper for all segments that it passes without waiting.

    Attributes:
        samples: those that it began with.
        segment: the number of the next segment, counted from 0.
        size: how many samples continue.
        deadline: the earliest of theirs, in seconds; infinite if none has one.
        due: when the results of those that have exited must be handed over; infinite if none has, or all were returned.
        error: why it ended, if a segment failed.
    """

    def __init__(self, bundle: Bundle, work: Work) -> None:
        self.bundle, self.samples, self.segment = bundle, work.samples, work.segment
        self.size, self.deadline = len(work.samples), _earliest(work.samples)
        self.due: int | float = math.inf
        self.error: Exception | None = None
        self._segments = bundle.segments if self.segment else bundle.segments_for(self.size)
        self._stepper: Stepper | None = None
        self._ms = dict[int, int | float]()  # in the network until each exit, since this batch began
        self._spent: int | float = 0.0
        self._taken = set[int]()

    def advance(self) -> None:
        """Run the next segment on the samples that continue; raises whatever the runtime raises."""
        if self._stepper is None:
            entering = gather([sample.payload.row for sample in self.samples])
            policy = self.bundle.policy
            self._stepper = resume(policy, self.segment, entering.state, entering.carry, entering.policy_carry)
        self._stepper.advance(self._segments[self.segment])

    def passed(self, began: int | float, now: int | float) -> bool:
        """Record when the segment ran, in seconds, of which all samples have equal shares; whether all have exited."""
        stepper = self._stepper
        assert stepper is not None
        self._spent += 1000 * (now - began) / self.size
        self._ms[stepper.exits[self.segment]] = self._spent
        self.segment += 1
        if stepper.done:
            return True
        before, self.size = self.size, len(stepper.alive)
        if self.size < before:
            submitted = max(sample.payload.request.submitted for sample in self.samples)
            self.due = min(self.due, now + max(HELD, HELD_SHARE * (now - submitted)), self.deadline)
            if self.deadline < math.inf:
                self.deadline = _earliest(self.samples[index] for index in self.continuing())
        return False

    def continuing(self) -> list[int]:
        """The places in `samples` of those that have not exited."""
        if self._stepper is None or self._stepper.answer is None:
            return list(range(len(self.samples)))
        alive: list[int] = self._stepper.alive.tolist()
        return alive

    def complete(self) -> list[Sample]:
        """The samples that have exited, of requests without samples that continue; each only once."""
        self.due = math.inf
        continuing = set(self.continuing())
        requests = {self.samples[index].payload.request for index in continuing}
        return self._take(
            index
            for index, sample in enumerate(self.samples)
            if index not in continuing and sample.payload.request not in requests
        )

    def exited(self, continuing: Collection[int]) -> list[Sample]:
        """The samples that have exited, except those that `complete` has returned."""
        staying = set(continuing)
        return self._take(index for index in range(len(self.samples)) if index not in staying)

    def leave(self, continuing: Collection[int]) -> None:
        """Store the states of the samples that continue, and their results so far, for another batch."""
        self._take(continuing)
        stepper = self._stepper
        assert stepper is not None
        state, carry = stepper.state, stepper.carry
        if self._segments is not self.bundle.segments:
            state, carry = self.bundle.single_state(self.segment)
        onward = SegmentInput(state, carry, stepper.policy_carry)
        for place, index in enumerate(continuing):
            self.samples[index].payload.row = SampleRow(onward, place)

    def _take(self, indices: Iterable[int]) -> list[Sample]:
        """These samples, with their results so far, except those that were taken before."""
        stepper = self._stepper
        if stepper is None or stepper.answer is None:
            return []
        taken, exits = list[Sample](), stepper.answer.exit.tolist()
        for index in indices:
            if index not in self._taken:
                self._taken.add(index)
                ticket: Ticket = self.samples[index].payload
                ticket.best = stepper.answer, index
                ticket.ms += self._ms[exits[index]]
                taken.append(self.samples[index])
        return taken


class HeldSamples:
    """Samples that have exited, whose results wait for those of the batches that follow.

    Attributes:
        due: when the results of all must be handed over, in seconds; infinite if there are none.
    """

    def __init__(self) -> None:
        self.samples = list[Sample]()
        self.due: int | float = math.inf

    def add(self, samples: Iterable[Sample], now: int | float) -> None:
        """Hold samples that have exited now."""
        for sample in samples:
            self.samples.append(sample)
            request: Request = sample.payload.request
            due = now + HELD_SHARE * (now - request.submitted)
            self.due = min(self.due, due if sample.deadline is None else min(due, sample.deadline))

    def take(self) -> list[Sample]:
        """All samples, which it then no longer holds."""
        samples, self.samples, self.due = self.samples, [], math.inf
        return samples


def _earliest(samples: Iterable[Sample]) -> int | float:
    return min((sample.deadline for sample in samples if sample.deadline is not None), default=math.inf)
