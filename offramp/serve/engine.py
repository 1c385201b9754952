"""Runs a bundle's segments in a thread, as the scheduler says. Runs without torch."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.read import Bundle
from offramp.early_exit.runtime import Stepper
from offramp.serve.requests import Failed, Request, Result, Sink, Ticket, sample_result
from offramp.serve.rows import SampleRow, SegmentInput
from offramp.serve.running import RunningBatch
from offramp.serve.sample_queue import Sample
from offramp.serve.scheduler import Scheduler, Work
from offramp.serve.statistics import Statistics

LOG = logging.getLogger(__name__)
QUICK = 2e-3
"""Seconds in all segments: a request that takes less may run in its caller's thread."""
OVERHEAD = 1e-3
"""Seconds that a batch is assumed to take in addition to its segment: choosing and collecting its samples, distributing
its results, waking other threads. It is an upper estimate, so that batches of fast segments are large enough."""


def _failed(error: Exception) -> Failed:
    return Failed(str(error) or type(error).__name__)


class SegmentEngine:
    """One bundle, its scheduler, and the thread that runs its segments; errors of a batch end that batch alone."""

    def __init__(
        self, bundle: Bundle, scheduler: Scheduler, clock: Callable[[], int | float] = time.perf_counter
    ) -> None:
        self.bundle, self.scheduler, self.clock = bundle, scheduler, clock
        self.statistics = Statistics(bundle.policy.exits, len(bundle.segments))
        self._changed, self._adding = threading.Condition(), threading.Lock()
        self._stopping = False
        self._idle = 0
        self._alone = [curve(1) for curve in scheduler.costs]
        self._quick = sum(self._alone) < QUICK
        self._threads = [
            threading.Thread(target=self._loop, name=f"offramp-{bundle.folder.name}-{number}", daemon=True)
            for number in range(scheduler.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, inputs: NDArray[np.float32], key: Any, sink: Sink, deadline_ms: int | float | None = None) -> None:
        """Accept a request, as a whole or not at all.

        Args:
            inputs: (B, channels, size, size) as `Preprocessing.normalise` makes them.
            key: given to the sink with the results, once all samples have theirs.
            sink: what takes the results.
            deadline_ms: milliseconds from now in which the samples should be answered.
        Raises:
            QueueFull: if too many samples wait.
            RuntimeError: if the engine is stopped.
        """
        entering, now = SegmentInput(inputs), self.clock()
        request = Request(key, sink, len(inputs), now)
        tickets = [Ticket(request, place, SampleRow(entering, place)) for place in range(len(inputs))]
        with self._changed:
            self._check_running()
            self.scheduler.submit(tickets, now, None if deadline_ms is None else now + deadline_ms / 1000)
            self._changed.notify()

    def quick(self, samples: int) -> bool:
        """Whether a caller may use `run_alone`: one sample, less than `QUICK`, nothing waits and no thread works."""
        free = self._idle == len(self._threads) and not self.scheduler.unanswered and not self._stopping
        return self._quick and samples == 1 and free

    def run_alone(self, inputs: NDArray[np.float32], deadline_ms: int | float | None = None) -> Result | None:
        """The outcome of one sample (1, channels, size, size), computed in this thread: no other one is woken.

        Args:
            deadline_ms: as in `submit`; the sample is late where the scheduler would say so.

        Returns:
            None if another thread has submitted samples since `quick`; while this one computes, it waits.
        """
        with self._changed:
            return self._outcome_alone(inputs, deadline_ms) if self.quick(1) else None

    def _outcome_alone(self, inputs: NDArray[np.float32], deadline_ms: int | float | None) -> Result:
        began = passed = self.clock()
        deadline = math.inf if deadline_ms is None else began + deadline_ms / 1000
        stepper = Stepper(self.bundle.policy, inputs)
        try:
            for number, segment in enumerate(self.bundle.segments_for(1)):
                if number and deadline < passed + self._alone[number]:
                    break
                stepper.advance(segment)
                started, passed = passed, self.clock()
                self.statistics.ran(number, 1, passed - started)
                if stepper.done:
                    break
        except Exception as error:  # as in `_run`
            self.statistics.failed += 1
            return _failed(error)
        assert stepper.answer is not None
        outcome = sample_result(stepper.answer, 0, 1000 * (passed - began), not stepper.done)
        self.statistics.answer(outcome.exit, outcome.late, passed - began, outcome.score)
        return outcome

    def check(self, samples: int) -> None:
        """Refuse a request that does not fit now, before anything is done for it; raises as `submit`."""
        with self._changed:
            self._check_running()
            self.scheduler.check(samples)

    def _check_running(self) -> None:
        if self._stopping:
            raise RuntimeError(f"the server of {self.bundle.folder} is stopped")

    @property
    def alive(self) -> bool:
        """Whether all threads are running."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, finish: bool = True) -> None:
        """Answer everything that was accepted, then end the thread.

        Args:
            finish: if False, only the batch that runs is finished; the samples that wait are answered with `Failed`.
        """
        with self._changed:
            self._stopping = True
            dropped = [] if finish else self.scheduler.clear()
            self._changed.notify_all()
        stopped = Failed(f"the server of {self.bundle.folder} is stopped")
        self._hand_over([(sample.payload, stopped) for sample in dropped])
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                late, work = self.scheduler.next(self.clock())
                if not late and work is None:
                    if self._stopping and not self.scheduler.unanswered:
                        self._changed.notify_all()
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                    continue
            self._deliver(late, late=True)
            if work is not None:
                self._run(work)

    def _run(self, work: Work) -> None:
        """Run a batch through all segments that it passes without waiting; exited samples are answered."""
        batch = RunningBatch(self.bundle, work)
        while (ends := self._advance(batch)) is not None:
            if batch.due < ends:
                self._deliver(batch.complete(), late=False)
        continuing = batch.continuing()
        staying = continuing if batch.error is None else []
        if staying:
            batch.store()
        with self._changed:
            self.scheduler.finish(Work(batch.segment - 1, work.samples), staying)
            if staying and self.scheduler.workers > 1:
                self._changed.notify()
        self._deliver(batch.exited(), late=False)
        if batch.error is not None:
            self._fail([work.samples[index] for index in continuing], batch.error)

    def _advance(self, batch: RunningBatch) -> int | float | None:
        """Run one segment on a batch.

        Returns:
            When the next segment is expected to end, if the remaining samples pass it at once; otherwise None.
        """
        began, samples = self.clock(), batch.size
        try:
            batch.advance()
        except Exception as error:  # whatever a runtime raises: the batch has failed, the server keeps running
            batch.error = error
            return None
        now = self.clock()
        self.statistics.ran(batch.segment, samples, now - began)
        if batch.passed(began, now):
            return None
        with self._changed:
            if not self.scheduler.continues(batch.segment, batch.size, batch.deadline, now):
                return None
            late = self.scheduler.late_before(batch.segment, batch.size, now)
        self._deliver(late, late=True)
        return now + self.scheduler.costs[batch.segment](batch.size)

    def _fail(self, samples: Sequence[Sample], error: Exception) -> None:
        self.statistics.failed += len(samples)
        failed = _failed(error)
        self._hand_over([(sample.payload, failed) for sample in samples])

    def _deliver(self, samples: Sequence[Sample], late: bool) -> None:
        if not samples:
            return
        now, results = self.clock(), list[tuple[Ticket, Result]]()
        for sample in samples:
            outcome = sample.payload.outcome(late)
            self.statistics.answer(outcome.exit, late, now - sample.payload.request.submitted, outcome.score)
            results.append((sample.payload, outcome))
        self._hand_over(results)

    def _hand_over(self, results: Sequence[tuple[Ticket, Result]]) -> None:
        """One call per sink, for the requests that are complete; an error of one does not affect the others."""
        by_sink: dict[Sink, list[tuple[Any, list[Result]]]] = {}
        for ticket, result in results:
            request = ticket.request
            with self._adding:
                complete = request.add(ticket.place, result)
            if complete:
                by_sink.setdefault(request.sink, []).append((request.key, request.all()))
        for sink, each in by_sink.items():
            try:
                sink(each)
            except Exception:  # such as an event loop that is closed: this thread has other requests to answer
                LOG.exception("the results of %d requests could not be handed over", len(each))
