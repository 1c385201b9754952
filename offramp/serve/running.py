"""Batches that are being computed. Runs without torch."""

import math
from collections.abc import Iterable

from offramp.bundle.read import Bundle
from offramp.early_exit.runtime import Stepper, resume
from offramp.serve.requests import Ticket
from offramp.serve.rows import SampleRow, SegmentInput, gather
from offramp.serve.sample_queue import Sample
from offramp.serve.scheduler import Work

HELD, HELD_SHARE = 1e-2, 0.25
"""Results of exited samples are held while the rest of their batch continues at once, for at most `HELD` seconds and at
most this share of the time since the request was submitted. Returning results wakes the event loop and interrupts the
segments on a shared core, which costs less for several requests together. Results are not held for the next batch,
which would save time, too, but would raise the highest latencies."""


class RunningBatch:
    """A batch in computation, with one stepper for all segments that it passes without waiting.

    Attributes:
        samples: all samples of the batch, exited ones included.
        segment: number of the next segment, counted from 0.
        size: number of samples that have not exited.
        deadline: their earliest deadline, in seconds; infinite if there is none.
        due: time in seconds at which results of exited samples must be returned; infinite if none are pending.
        error: the exception of the segment that failed, if one has.
    """

    def __init__(self, bundle: Bundle, work: Work) -> None:
        self.bundle, self.samples, self.segment = bundle, work.samples, work.segment
        self.size, self.deadline = len(work.samples), _earliest(work.samples)
        self.due: int | float = math.inf
        self.error: Exception | None = None
        self._segments = bundle.segments if self.segment else bundle.segments_for(self.size)
        self._stepper: Stepper | None = None
        self._ms = dict[int, int | float]()  # by exit: milliseconds per sample in the network, up to this exit
        self._spent: int | float = 0.0
        self._taken = set[int]()

    def advance(self) -> None:
        """Run the next segment on the samples that have not exited; raises whatever the runtime raises."""
        if self._stepper is None:
            entering = gather([sample.payload.row for sample in self.samples])
            policy = self.bundle.policy
            self._stepper = resume(policy, self.segment, entering.state, entering.carry, entering.policy_carry)
        self._stepper.advance(self._segments[self.segment])

    def passed(self, began: int | float, now: int | float) -> bool:
        """Record the start and end of the segment, in seconds; returns whether all samples have exited."""
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
            self.due = min(self.due, now + min(HELD, HELD_SHARE * (now - submitted)), self.deadline)
            if self.deadline < math.inf:
                self.deadline = _earliest(self.samples[index] for index in self.continuing())
        return False

    def continuing(self) -> list[int]:
        """Indices in `samples` of the samples that have not exited."""
        if self._stepper is None or self._stepper.answer is None:
            return list(range(len(self.samples)))
        alive: list[int] = self._stepper.alive.tolist()
        return alive

    def complete(self) -> list[Sample]:
        """Exited samples of requests that have no remaining sample in this batch, if not returned before."""
        self.due = math.inf
        continuing = set(self.continuing())
        requests = {self.samples[index].payload.request for index in continuing}
        return self._take(
            index
            for index, sample in enumerate(self.samples)
            if index not in continuing and sample.payload.request not in requests
        )

    def exited(self) -> list[Sample]:
        """Exited samples that `complete` has not returned."""
        continuing = set(self.continuing())
        return self._take(index for index in range(len(self.samples)) if index not in continuing)

    def store(self) -> None:
        """Store state and last prediction of every sample that has not exited, for another batch."""
        continuing = self.continuing()
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
        """Store the last prediction of these samples, and return them, without those taken before."""
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


def _earliest(samples: Iterable[Sample]) -> int | float:
    return min((sample.deadline for sample in samples if sample.deadline is not None), default=math.inf)
