"""Answers by replicas of Ray Serve: each request goes from segment to segment until it exits. Runs without torch."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from offramp.bundle.read import Bundle
from offramp.serve.options import ServeOptions
from offramp.serve.predictor import ImageDecoder, check_deadline
from offramp.serve.ray_segment import Broken, Passed, RequestInput
from offramp.serve.requests import Failed, Result, SampleResult
from offramp.serve.rows import SegmentInput
from offramp.serve.scheduler import QueueFull
from offramp.serve.statistics import Statistics

PATIENCE = 120.0
"""Seconds in which a request whose replicas are lost is sent again; a node's loss is noticed after some of them."""
PAUSE = 0.1
NOT_READY = 10.0
"""Seconds without a response of any replica after which a server with unanswered requests is not ready."""
RETRY_AFTER = 1.0


class RayPredictor:
    """An `offramp.serve.models.Predictor` in front of one deployment per segment.

    A request is accepted here, and its inputs stay here until it is answered: if a replica or a node is lost, it
    begins again at the first segment. Nothing a segment does has an effect elsewhere, so that no answer is given twice.

    Args:
        bundle: the same that the replicas have open.
        handles: of the deployments, in the order of the segments.
        close: deletes the deployments.
    """

    def __init__(
        self, bundle: Bundle, handles: Sequence[Any], options: ServeOptions, close: Callable[[], None] = lambda: None
    ) -> None:
        self.bundle, self.handles, self.options = bundle, tuple(handles), options
        self.statistics = Statistics(bundle.policy.exits, len(bundle.segments))
        self.waiting = [0] * len(handles)
        self.alive = True
        self._unanswered, self._last_response = 0, time.perf_counter()
        self._decoder, self._close = ImageDecoder(bundle.manifest.preprocessing), close

    @property
    def ready(self) -> bool:
        """Whether replicas answer: while requests wait, the last response is at most `NOT_READY` seconds old."""
        return self.alive and (not self._unanswered or time.perf_counter() - self._last_response < NOT_READY)

    def check(self, samples: int) -> None:
        """Raise `QueueFull` if a request of this many images would not fit now."""
        if self._unanswered + samples > self.options.queue:
            raise QueueFull(samples, self._unanswered, self.options.queue, RETRY_AFTER)

    async def decode(self, image: Path | str | bytes) -> NDArray[np.float32]:
        """As `AsyncPredictor.decode`."""
        return await self._decoder(image)

    async def infer(self, inputs: NDArray[np.float32], *, deadline_ms: int | float | None = None) -> list[Result]:
        """As `AsyncPredictor.infer`; at a deadline, the best exit so far answers."""
        milliseconds = self.options.deadline_ms if deadline_ms is None else check_deadline(deadline_ms)
        deadline = None if milliseconds is None else time.perf_counter() + milliseconds / 1000
        self.check(len(inputs))
        if not self._unanswered:  # until now, no response was to come
            self._last_response = time.perf_counter()
        self._unanswered += len(inputs)
        try:
            most = self.options.max_batch
            chunks = [inputs[start : start + most] for start in range(0, len(inputs), most)]
            parts = await asyncio.gather(*(self._answer(chunk, deadline) for chunk in chunks))
        finally:
            self._unanswered -= len(inputs)
        return [result for part in parts for result in part]

    def close(self, finish: bool = True) -> None:
        """Delete the deployments; all requests are answered before a version is closed."""
        self.alive = False
        self._decoder.close()
        self._close()

    async def _answer(self, inputs: NDArray[np.float32], deadline: float | None) -> list[Result]:
        began = time.perf_counter()
        while True:
            try:
                results = await self._pass(inputs, deadline)
                break
            except (RayError, RayServeException) as error:
                mistake = isinstance(error, RayTaskError) and not isinstance(error.cause, RayError | RayServeException)
                if mistake or time.perf_counter() - began > PATIENCE:
                    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                    results = [Failed(f"no replica answers: {reason[0]}")] * len(inputs)
                    break
                await asyncio.sleep(PAUSE)
        self._count(results, time.perf_counter() - began)
        return results

    async def _pass(self, inputs: NDArray[np.float32], deadline: float | None) -> list[Result]:
        """One attempt, from the first segment on."""
        results: dict[int, Result] = {}
        rows, part, spent = list(range(len(inputs))), RequestInput(SegmentInput(inputs)), 0.0
        for segment in range(len(self.handles)):
            passed = await self._call(segment, part, len(rows), deadline if segment else None)
            if passed is None:  # the deadline: `results` has the best exit so far
                break
            if isinstance(passed, Broken):
                results |= dict.fromkeys(rows, Failed(passed.reason))
                break
            if passed.first:
                self.statistics.ran(segment, *passed.batch)
            spent += 1000 * passed.batch.seconds / passed.batch.samples
            staying = set(passed.alive)
            for place, row in enumerate(rows):
                logits, score = passed.logits[place], float(passed.score[place])
                results[row] = SampleResult(logits, passed.exit, score, spent, place in staying)
            if passed.onward is None:
                break
            rows, part = [rows[place] for place in passed.alive], passed.onward
        return [results[row] for row in range(len(inputs))]

    async def _call(
        self, segment: int, part: RequestInput, count: int, deadline: float | None
    ) -> Passed | Broken | None:
        """The answer of a segment; None if the deadline comes first."""
        seconds = None if deadline is None else deadline - time.perf_counter()
        if seconds is not None and seconds <= 0:
            return None
        self.waiting[segment] += count
        response = self.handles[segment].remote(part)
        try:
            async with asyncio.timeout(seconds):
                passed: Passed | Broken = await response
            self._last_response = time.perf_counter()
            return passed
        except TimeoutError:
            response.cancel()
            return None
        finally:
            self.waiting[segment] -= count

    def _count(self, results: Sequence[Result], seconds: float) -> None:
        for result in results:
            if isinstance(result, Failed):
                self.statistics.failed += 1
            else:
                self.statistics.answer(result.exit, result.late, seconds, result.score)
