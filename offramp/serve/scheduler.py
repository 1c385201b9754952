"""Which segment runs next, on which samples. Runs without torch, without a clock and without threads of its own.

Samples wait in one queue per segment. Of all queues, the one with the largest product of two numbers runs next:

- the pressure of its first sample: its waiting time since it arrived, as a share of the time it has (its deadline, or
  `sample_queue.PATIENCE`). It grows without bound, so that no sample waits forever.
- the efficiency of its batch: the lowest cost per sample of that segment, divided by that of the batch that waits. So
  samples gather before a segment for which large batches pay, and run at once where they do not.

The samples of a batch that do not exit pass the next segment at once, unless others already wait for it, or unless
waiting pays: it does if the time that a larger batch saves, for each of the samples that wait anywhere, exceeds the
time by which the next first batch would delay these. So the more samples wait, and the larger the batches that pay, the
more often new batches are formed at the exits.

This is the rule of largest weighted delay first (Andrews et al., Providing quality of service over a shared wireless
link, IEEE Communications Magazine 39(2), 2001), with the efficiency of a batch as the rate of service. Within a queue,
the sample that is due first comes first (earliest deadline first; Liu and Layland, JACM 20(1), 1973).

The driver reports the time and runs the work: threads (`offramp.serve.engine`) or a simulation.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from offramp.serve.costs import CostCurve
from offramp.serve.sample_queue import Sample, SampleQueue

NEW_BATCH = 3e-4
"""Seconds that one more batch is estimated to cost: waiting has to save more. (`overhead`, from which the sizes of
batches follow, is an upper estimate.)"""


class QueueFull(Exception):
    """Too many samples wait; `retry_after` is the number of seconds in which they are expected to be answered."""

    def __init__(self, samples: int, waiting: int, capacity: int, retry_after: int | float) -> None:
        super().__init__(f"the queue is full: {waiting} of at most {capacity} samples wait, {samples} more do not fit")
        self.waiting, self.capacity, self.retry_after = waiting, capacity, retry_after


class Work(NamedTuple):
    """A batch to run: the number of the segment, counted from 0, and its samples."""

    segment: int
    samples: list[Sample]


class Decision(NamedTuple):
    """The next step: samples to answer with their deepest exit so far, and the batch to run, if any waits."""

    late: list[Sample]
    work: Work | None


class Scheduler:
    """The queues of one bundle; not safe for several threads at once.

    Args:
        costs: one curve per segment.
        overhead: seconds that each batch takes in addition to its segment.
        most: samples of the largest batch.
        capacity: how many samples may be accepted and not answered.
        workers: how many batches run at the same time.
    """

    def __init__(
        self,
        costs: Sequence[CostCurve],
        *,
        overhead: int | float = 0.0,
        most: int = 32,
        capacity: int = 1024,
        workers: int = 1,
    ) -> None:
        self.costs = tuple(costs)
        self.capacity, self.workers = capacity, workers
        batches = [curve.plus(overhead) for curve in costs]
        self.useful = tuple(curve.useful(most) for curve in batches)
        self.unanswered = 0
        # Tables by segment and batch size: seconds, and what the same samples would save in the best batch.
        sizes = range(1, max(self.useful) + 1)
        self._seconds = [[0.0, *map(curve, sizes)] for curve in batches]
        best = [curve.lowest(most) for curve in costs]
        self._saving = [[0.0, *(curve(n) - n * each - NEW_BATCH for n in sizes)] for curve, each in zip(costs, best)]
        self._each = [seconds[size] / size for seconds, size in zip(self._seconds, self.useful)]
        self._path = sum(self._each)
        self._queues = [SampleQueue() for _ in costs]

    @property
    def waiting(self) -> list[int]:
        """How many samples wait for each segment."""
        return [len(queue) for queue in self._queues]

    def retry_after(self) -> int | float:
        """Seconds in which everything that waits is expected to be answered, if no sample exits early."""
        remaining = [sum(self._each[segment:]) for segment in range(len(self.costs))]
        return sum(n * seconds for n, seconds in zip(self.waiting, remaining)) + self._path

    def check(self, samples: int) -> None:
        """Refuse a request of this many samples that does not fit.

        Raises:
            QueueFull: if it does not.
        """
        if self.unanswered + samples > self.capacity:
            raise QueueFull(samples, self.unanswered, self.capacity, self.retry_after())

    def submit(self, payloads: Iterable[Any], now: int | float, deadline: int | float | None = None) -> list[Sample]:
        """Accept a request, as a whole or not at all.

        Args:
            payloads: one per sample.
            now: in seconds.
            deadline: in seconds, on the same clock.
        Raises:
            QueueFull: if it does not fit.
        """
        samples = [
            Sample(payload, now + index * self._path, None if deadline is None else max(deadline, now))
            for index, payload in enumerate(payloads)
        ]
        self.check(len(samples))
        self.unanswered += len(samples)
        for sample in samples:
            self._queues[0].add(sample)
        return samples

    def next(self, now: int | float) -> Decision:
        """What to answer and what to run at this time, for a worker that is idle; the driver must do both."""
        late = self._drop_late(now)
        segment = self._choose(now)
        if segment is None:
            return Decision(late, None)
        samples = self._take(segment, now, late)
        if not samples:  # all of its samples would have come too late
            more = self.next(now)
            return Decision(late + more.late, more.work)
        return Decision(late + self.late_before(segment, len(samples), now), Work(segment, samples))

    def continues(self, segment: int, samples: int, deadline: int | float, now: int | float) -> bool:
        """Whether the samples of a batch that do not exit pass the next segment at once, instead of entering its queue.

        They do if no other sample waits for it and waiting does not pay, unless a deadline would be missed. The caller
        then answers the samples that `late_before` returns and runs the segment; otherwise, it calls `finish`.

        Args:
            segment: number of the next segment.
            samples: number of samples that continue.
            deadline: their earliest deadline, in seconds; infinite if there is none.
            now: in seconds.
        """
        if len(self._queues[segment]) or self._waiting_pays(segment, samples):
            return False
        ends = now + self._seconds[segment][samples]
        return ends <= deadline and not self._too_late_for_new_ones(now, ends)

    def late_before(self, segment: int, samples: int, now: int | float) -> list[Sample]:
        """Remove and return the waiting samples that would miss their deadline because of this batch."""
        if self.workers > 1:  # another one may still run them in time
            return []
        return self._drop_late(now + self._seconds[segment][samples])

    def finish(self, work: Work, staying: Iterable[int]) -> list[Sample]:
        """Report a batch that has run.

        Args:
            work: the samples, with the number of the last segment that they passed.
            staying: indices of the samples that enter the queue of the next segment.
        Returns:
            The samples that have exited.
        """
        staying_set = set(staying)
        leaving = list[Sample]()
        for index, sample in enumerate(work.samples):
            if index in staying_set:
                sample.passed = work.segment + 1
                self._queues[sample.passed].add(sample)
            else:
                leaving.append(sample)
        self.unanswered -= len(leaving)
        return leaving

    def clear(self) -> list[Sample]:
        """Remove all samples that wait."""
        samples = [queue.pop() for queue in self._queues for _ in range(len(queue))]
        self.unanswered -= len(samples)
        return samples

    def _waiting_pays(self, segment: int, samples: int) -> bool:
        """Whether a larger batch saves all who wait more time than these samples lose by waiting for it."""
        return self._saving[segment][samples] * sum(map(len, self._queues)) > samples * self._cost(0)

    def _too_late_for_new_ones(self, now: int | float, ends: int | float) -> bool:
        """Whether samples that have no answer yet would miss their deadline, did they run at `ends` instead of now."""
        first, cost = self._queues[0].deadline, self._cost(0)
        return now + cost <= first < ends + cost

    def _choose(self, now: int | float) -> int | None:
        """The segment that runs next, or None if no sample waits."""
        waiting = [segment for segment, queue in enumerate(self._queues) if len(queue)]
        if not waiting:
            return None
        segment = max(waiting, key=lambda segment: (self._weight(segment, now), segment))
        return 0 if segment and self._too_late_for_new_ones(now, now + self._cost(segment)) else segment

    def _cost(self, segment: int) -> int | float:
        """Seconds of the batch that this segment would run now."""
        return self._seconds[segment][max(1, min(len(self._queues[segment]), self.useful[segment]))]

    def _weight(self, segment: int, now: int | float) -> int | float:
        queue = self._queues[segment]
        batch = min(len(queue), self.useful[segment])
        return queue.first.pressure(now) * self._each[segment] * batch / self._seconds[segment][batch]

    def _take(self, segment: int, now: int | float, late: list[Sample]) -> list[Sample]:
        """The next batch of a segment; samples with an answer that this batch would delay too long become late."""
        queue = self._queues[segment]
        batch = [queue.pop() for _ in range(min(len(queue), self.useful[segment]))]
        if segment:
            ends = now + self._seconds[segment][len(batch)]
            cut = [sample for sample in batch if sample.deadline is not None and sample.deadline < ends]
            self.unanswered -= len(cut)
            late += cut
            batch = [sample for sample in batch if sample.deadline is None or sample.deadline >= ends]
        return batch

    def _drop_late(self, start: int | float) -> list[Sample]:
        """Remove the samples with an answer whose next segment, started at this time, would end after their deadline.

        Samples without an answer stay: the first segment runs in any case.
        """
        late = []
        for segment, queue in enumerate(self._queues[1:], 1):
            while queue.deadline < start + self._seconds[segment][1]:
                late.append(queue.pop_dated())
        self.unanswered -= len(late)
        return late
