"""Await one image, get one prediction: batches form behind, answers leave at their exits. Runs without torch."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from offramp.argument_types import check_arguments
from offramp.bundle.predict import Prediction
from offramp.bundle.preprocess import Preprocessing
from offramp.bundle.read import Bundle, open_bundle
from offramp.images import BadImage, open_image
from offramp.lookup import ParameterError
from offramp.serve.answers import prediction
from offramp.serve.costs import CostCurve
from offramp.serve.engine import OVERHEAD, SegmentEngine
from offramp.serve.measure import measure
from offramp.serve.requests import Failed, Result, SampleResult, Sink
from offramp.serve.scheduler import Scheduler
from offramp.serve.statistics import Statistics

InputArray = NDArray[np.float32]
QUICK_BYTES, QUICK_PIXELS = 1 << 14, 1 << 14
"""Images of at most this size are decoded in the event loop's thread: handing them to another one takes longer."""


class AsyncPredictor:
    """A bundle that serves many concurrent callers of an event loop, each as soon as its image exits.

    At every exit, the remaining images of all calls are combined into new batches. Use it as a context manager
    (`async with AsyncPredictor("bundle") as p: prediction = await p.predict("a.jpg")`), or call `close` at the end.

    Args:
        bundle: folder that `offramp export` wrote, or an open bundle.
        runtime: `onnx` or `openvino`, in float32 on the CPU; `onnx-cuda` or `onnx-tensorrt` on a GPU.
        deadline_ms: milliseconds after which an image gets the prediction of the deepest exit that it has passed; by
            default, never.
        max_batch: maximum number of images in a batch.
        queue: maximum number of images that wait for their prediction; further calls raise `QueueFull`.
        workers: number of batches that run at the same time.
        costs: one cost curve per segment (time by batch size); default: measured at the start, which takes a second or
            more.
    Raises:
        ValueError: if the bundle cannot be opened or a number is invalid.
        ImportError: if the runtime is not installed.
    """

    @check_arguments
    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        runtime: str = "onnx",
        deadline_ms: int | float | None = None,
        max_batch: int = 32,
        queue: int = 1024,
        workers: int = 1,
        costs: Sequence[CostCurve] | None = None,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("queue", queue), ("workers", workers)):
            if value < 1:
                raise ParameterError(f"{name} must be at least 1, got {value}", name)
        self.deadline_ms = check_deadline(deadline_ms)
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, runtime)
        curves = measure(self.bundle, max_batch) if costs is None else costs
        scheduler = Scheduler(curves, overhead=OVERHEAD, most=max_batch, capacity=queue, workers=workers)
        self.engine = SegmentEngine(self.bundle, scheduler)
        self._decoder = ImageDecoder(self.bundle.manifest.preprocessing)
        self._sinks: tuple[asyncio.AbstractEventLoop, Sink] | None = None
        self._asking = 0

    @check_arguments
    async def predict(self, image: Path | str | bytes, *, deadline_ms: int | float | None = None) -> Prediction:
        """Label, probability and exit of one image.

        Args:
            image: a file or the encoded bytes of one.
            deadline_ms: deadline of this image in milliseconds; default: that of the predictor.
        Returns:
            The prediction, with `exit` counted from 0; if the image could not be read, it has an `error` and no label.
            `at_deadline` is true if the deadline came before the image could exit.
        Raises:
            QueueFull: if too many images wait.
            RuntimeError: if the predictor is closed.
            Failed: if a segment failed.
        """
        self.check(1)
        name = "" if isinstance(image, bytes) else str(image)
        try:
            inputs = await self.decode(image)
        except BadImage as error:
            return Prediction(name, error=str(error))
        result = (await self.infer(inputs, deadline_ms=deadline_ms))[0]
        if isinstance(result, Failed):
            raise result
        return prediction(self.bundle.manifest.classes, name, result)

    async def decode(self, image: Path | str | bytes) -> InputArray:
        """The inputs (1, channels, size, size) of one image.

        Raises:
            BadImage: if it cannot be read.
        """
        return await self._decoder(image)

    async def infer(self, inputs: InputArray, *, deadline_ms: int | float | None = None) -> list[Result]:
        """The outcome of each input (B, channels, size, size), in order; `Failed` for those whose segment failed.

        Raises:
            QueueFull: if they do not fit into the queue; none of them was accepted then.
            ParameterError: if the inputs have another type or shape, or the deadline is not positive.
        """
        check_inputs(inputs, self.bundle.manifest.preprocessing.shape)
        if not len(inputs):
            return []
        loop = asyncio.get_running_loop()
        deadline = self.deadline_ms if deadline_ms is None else check_deadline(deadline_ms)
        self._asking += 1
        try:
            if await self._alone(len(inputs)) and (alone := self.engine.run_alone(inputs, deadline)) is not None:
                return [alone]
            results: asyncio.Future[list[Result]] = loop.create_future()
            self.engine.submit(inputs, results, self._sink(loop), deadline)
            return await results
        finally:
            self._asking -= 1

    async def _alone(self, samples: int) -> bool:
        """Whether a request runs in this thread: it is quick, and none arrived with it to share batches with.

        Waking the engine's thread and being woken by it takes longer than what a small segment computes.
        """
        if not self.engine.quick(samples):
            return False
        await asyncio.sleep(0)  # those that have arrived come here, too
        return self._asking == 1 and self.engine.quick(samples)

    @property
    def statistics(self) -> Statistics:
        """Counts since the start."""
        return self.engine.statistics

    @property
    def waiting(self) -> list[int]:
        """Number of images that wait for each segment."""
        return self.engine.scheduler.waiting

    @property
    def alive(self) -> bool:
        """Whether the computing threads are running."""
        return self.engine.alive

    @property
    def ready(self) -> bool:
        """Whether it answers requests now: as `alive`."""
        return self.alive

    def check(self, samples: int) -> None:
        """Raise `QueueFull` if a request of this many images would not fit now, `RuntimeError` if it is closed."""
        self.engine.check(samples)

    def close(self, finish: bool = True) -> None:
        """Stop; returns when done.

        Args:
            finish: whether all accepted images are finished first; else, calls that wait for a batch raise `Failed`.
        """
        self.engine.stop(finish)
        self._decoder.close()

    async def __aenter__(self) -> "AsyncPredictor":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _sink(self, loop: asyncio.AbstractEventLoop) -> Sink:
        """What resolves futures of an event loop: one call into the loop for all results of a batch."""
        if self._sinks is None or self._sinks[0] is not loop:
            self._sinks = loop, lambda results: _hand_over(loop, results)
        return self._sinks[1]


class ImageDecoder:
    """Decodes images: small ones at once, others in two threads."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="offramp-decode")

    async def __call__(self, image: Path | str | bytes | Image) -> InputArray:
        """The inputs (1, channels, size, size) of one image; see `AsyncPredictor.decode`."""
        if isinstance(image, bytes) and len(image) <= QUICK_BYTES:
            image = open_image(image)
            if image.width * image.height <= QUICK_PIXELS:
                return read_input(self.preprocessing, image)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, read_input, self.preprocessing, image)

    def close(self) -> None:
        """Wait for what is being decoded, and end the threads."""
        self._threads.shutdown(wait=True)


def read_input(preprocessing: Preprocessing, image: Path | str | bytes | Image) -> InputArray:
    """The inputs (1, channels, size, size) of one image, which may be open; see `AsyncPredictor.decode`."""
    if isinstance(image, str | Path):
        image = Path(image)
        if not image.is_file():
            raise BadImage("there is no such file")
    return preprocessing.normalise(preprocessing.read(image)[None])


def check_inputs(inputs: Any, shape: tuple[int, ...]) -> None:
    """Refuse what would fail a batch with the inputs of other calls, or be converted when it is joined with them.

    Args:
        shape: of one input.
    Raises:
        ParameterError: naming the type and shape that inputs must have.
    """
    array = isinstance(inputs, np.ndarray)
    if not array or inputs.dtype != np.float32 or inputs.shape[1:] != shape:
        kind = f"{inputs.dtype} of the shape {list(inputs.shape)}" if array else type(inputs).__name__
        wanted = f"float32 of the shape [N, {', '.join(map(str, shape))}]"
        raise ParameterError(f"inputs must be an array of {wanted}, got {kind}", "inputs")


def check_deadline(deadline_ms: int | float | None) -> int | float | None:
    """The deadline itself.

    Raises:
        ParameterError: if it is not a positive number.
    """
    if deadline_ms is not None and not 0 < deadline_ms < float("inf"):
        raise ParameterError(f"deadline_ms must be a positive number, got {deadline_ms}", "deadline_ms")
    return deadline_ms


def _hand_over(loop: asyncio.AbstractEventLoop, results: Sequence[tuple[Any, list[Result]]]) -> None:
    if not loop.is_closed():  # else nobody waits any more
        loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: Sequence[tuple[Any, list[Result]]]) -> None:
    for future, each in results:
        if not future.done():  # its caller may have given up
            future.set_result(each)


__all__ = ["AsyncPredictor", "Failed", "Prediction", "SampleResult"]
