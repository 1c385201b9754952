"""The models of a server, each with its versions: opened, replaced and closed without losing a request.

Runs without torch. All methods but `open_model` belong to the event loop's thread.

What versions a model's folder holds: `offramp.serve.versions`.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.read import Bundle
from offramp.lookup import ParameterError
from offramp.serve.costs import CostCurve
from offramp.serve.drift import DriftMonitor, reference
from offramp.serve.errors import unknown
from offramp.serve.feedback import Feedback
from offramp.serve.logs import Log
from offramp.serve.options import ServeOptions
from offramp.serve.predictor import AsyncPredictor
from offramp.serve.requests import Result
from offramp.serve.scheduler import QueueFull
from offramp.serve.statistics import Statistics, no_listener
from offramp.serve.versions import open_versions
from offramp.text import quoted

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")


@runtime_checkable
class Predictor(Protocol):
    """The interface that the HTTP application uses: `AsyncPredictor`, or replicas on a Ray cluster."""

    bundle: Bundle

    @property
    def statistics(self) -> Statistics:
        """What was counted so far."""

    @property
    def waiting(self) -> list[int]:
        """How many samples wait for each segment."""

    @property
    def alive(self) -> bool:
        """Whether it can answer; if not, the process must be restarted."""

    @property
    def ready(self) -> bool:
        """Whether it answers requests now."""

    def check(self, samples: int) -> None:
        """Raise `QueueFull` if a request of this many samples would not fit now."""

    async def decode(self, image: Path | str | bytes) -> NDArray[np.float32]:
        """The inputs (1, channels, size, size) of one image; raises `BadImage`."""

    async def infer(self, inputs: NDArray[np.float32], *, deadline_ms: int | float | None = None) -> list[Result]:
        """The outcome of every input, in order."""

    def close(self, finish: bool = True) -> None:
        """Answer what was accepted, then stop; without `finish`, drop it, because nobody waits for it any more."""


Opener = Callable[[Path, ServeOptions], Mapping[str, Predictor]]


@runtime_checkable
class CanGiveUp(Protocol):
    """An opener that may take long."""

    def give_up(self) -> None:
        """Open nothing any more: raise `ValueError` soon where a model is being opened."""


class Version:
    """One version of a model that is served.

    Attributes:
        predictor: what answers.
        drift: compares what it answers with cal.
        feedback: labelled images.
        decoding: how many images are being decoded, which will need places in the queue.
    """

    def __init__(self, model: str, version: str, predictor: Predictor, options: ServeOptions) -> None:
        self.model, self.version, self.predictor = model, version, predictor
        self.bundle = predictor.bundle
        log = Log(options.log)
        drift = DriftMonitor(  # the alarm must not refer to this version: a cycle would keep its network in memory
            reference(self.bundle.manifest),
            options.false_alarm,
            lambda: log.error("drift", model=model, version=version, **drift.report()),
        )
        self.drift = drift
        self.feedback = Feedback(self.bundle, options.feedback)
        predictor.statistics.listener = self.drift.add
        self.decoding = 0
        self._uses = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def check(self, images: int) -> None:
        """Check that the queue has room for this many images in addition to those being decoded.

        Raises:
            QueueFull: if it has not.
        """
        try:
            self.predictor.check(self.decoding + images)
        except QueueFull as full:  # the message counts images being decoded as waiting
            raise QueueFull(images, full.waiting + self.decoding, full.capacity, full.retry_after) from None

    @contextmanager
    def use(self) -> Iterator["Version"]:
        """Keep it open for the duration of a request."""
        self.begin()
        try:
            yield self
        finally:
            self.end()

    def begin(self) -> None:
        """Keep it open until `end` is called as often."""
        self._uses += 1
        self._idle.clear()

    def end(self) -> None:
        """A request that it was kept open for is answered."""
        self._uses -= 1
        if not self._uses:
            self._idle.set()

    async def retire(self) -> None:
        """Close it when its last request is answered."""
        await self._idle.wait()
        await asyncio.to_thread(self.predictor.close, finish=False)  # what it still has is of cancelled requests
        self.predictor.statistics.listener = no_listener  # else a cycle would keep the network in memory


class Models:
    """Every model that is served, by name.

    Args:
        folders: of the models, by name.
        options: of the server.
        opener: from a model's folder to a predictor for each version, the oldest first; `open_model` by default.
    """

    def __init__(self, folders: Mapping[str, Path], options: ServeOptions, opener: Opener | None = None) -> None:
        self.folders, self.options = dict(folders), options
        self.opener: Opener = opener or open_model
        self.open: dict[str, dict[str, Version]] = {}
        self._locks = {name: asyncio.Lock() for name in folders}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def default(self) -> str:
        """The model of requests that name none: the first."""
        return next(iter(self.folders))

    def get(self, name: str | None = None, version: str | None = None) -> Version:
        """A version of a model; by default, the latest of the first.

        Raises:
            RequestError: 404, if there is none.
        """
        name = self.default if name is None else name
        versions = self.open.get(name)
        if not versions:
            known = ", ".join(self.open) or "none"
            raise unknown(f"there is no model {quoted(name)} here; served are: {known}")
        version = list(versions)[-1] if version is None else version
        if version not in versions:
            raise unknown(f"the model {name} has no version {quoted(version)}; served are: {', '.join(versions)}")
        return versions[version]

    def all(self) -> list[Version]:
        """Every version of every model."""
        return [version for versions in self.open.values() for version in versions.values()]

    async def load(self, name: str) -> list[str]:
        """Open a model as its folder is now; what is being answered by the old one is answered by the old one.

        Returns:
            Its versions.
        Raises:
            RequestError: 404, if no model has that name.
            ValueError: if the folder cannot be opened; the old one stays then.
        """
        if name not in self.folders:
            raise unknown(f"there is no model {quoted(name)} here; known are: {', '.join(self.folders)}")
        async with self._locks[name]:
            predictors = await asyncio.to_thread(self.opener, self.folders[name], self.options)
            old = self.open.get(name, {})
            self.open[name] = {
                version: Version(name, version, predictor, self.options) for version, predictor in predictors.items()
            }
            self._retire(old)
            return list(self.open[name])

    def unload(self, name: str) -> None:
        """Serve a model no longer.

        Raises:
            RequestError: 404, if it is not served.
        """
        self.get(name)
        self._retire(self.open.pop(name))

    def _retire(self, versions: Mapping[str, Version]) -> None:
        for version in versions.values():
            task = asyncio.create_task(version.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Close all models when their last requests are answered; what is being opened is given up."""
        if isinstance(self.opener, CanGiveUp):
            self.opener.give_up()
        for name in list(self.open):
            self._retire(self.open.pop(name))
        await asyncio.gather(*self._retiring)


def named(words: list[str]) -> dict[str, Path]:
    """Models by name from `NAME=FOLDER` or `FOLDER`, whose own name is taken.

    Raises:
        ParameterError: if a name is unsuitable or given twice, or a folder is none.
    """
    result: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        folder = Path(path if equals else word)
        if not folder.is_dir():
            raise ParameterError(f"there is no folder {folder}", "bundles")
        name = name if equals else folder.resolve().name
        if not NAME.fullmatch(name):
            raise ParameterError(
                f"{name!r} cannot be the name of a model in an address: write NAME={folder}, with letters, digits, "
                "`_`, `.` and `-`",
                "bundles",
            )
        if name in result:
            raise ParameterError(f"two models are named {name}: write NAME=FOLDER to tell them apart", "bundles")
        result[name] = folder
    if not result:
        raise ParameterError("name at least one bundle", "bundles")
    return result


def open_model(folder: Path, options: ServeOptions) -> dict[str, AsyncPredictor]:
    """A predictor for every version of a model, the oldest first; takes a second or more.

    Raises:
        ValueError: if there is no bundle, or one of them cannot be opened.
    """
    result: dict[str, AsyncPredictor] = {}
    costs: dict[str, Sequence[CostCurve]] = {}  # policies of one bundle share its segments
    try:
        for version, bundle in open_versions(folder, options.runtime).items():
            number = version.partition(".")[0]
            result[version] = _predictor(bundle, options, costs.get(number))
            costs[number] = result[version].engine.scheduler.costs
    except Exception:
        for predictor in result.values():
            predictor.close()
        raise
    return result


def _predictor(bundle: Bundle, options: ServeOptions, costs: Sequence[CostCurve] | None) -> AsyncPredictor:
    return AsyncPredictor(
        bundle,
        deadline_ms=options.deadline_ms,
        max_batch=options.max_batch,
        queue=options.queue,
        workers=options.workers,
        costs=costs,
    )
