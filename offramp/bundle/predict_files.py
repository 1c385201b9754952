"""Predict image files with a bundle, on one machine or in two parts. Runs without torch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from offramp.argument_types import check_arguments
from offramp.bundle import partial_state
from offramp.bundle.gpu_sessions import PROVIDERS
from offramp.bundle.predict import Prediction, begin, find, predict_rest, predictions, warm_up
from offramp.bundle.read import Bundle, open_bundle
from offramp.lookup import ParameterError, with_parameters
from offramp.progress import Progress, no_progress

Runtime = Literal["onnx", "onnx-cuda", "onnx-tensorrt", "openvino"]


class PredictionStream(NamedTuple):
    """Predictions as they are computed.

    Attributes:
        bundle: opened, with the segments that run here.
        predictions: one per image; computed when they are read.
        total: how many there will be.
        device: device that computes them, `cpu` or `cuda`.
    """

    bundle: Bundle
    predictions: Iterator[Prediction]
    total: int
    device: str = "cpu"


@dataclass(frozen=True)
class Predictions:
    """The result of `predict`; exits of `images` are counted from 0, in tables and in `as_dict` from 1.

    Attributes:
        bundle: folder of the bundle.
        digest: digest of its manifest.
        runtime: runtime that computed them.
        exits: number of exits of the network, enabled or not.
        state: file with the images that have not exited after `first` segments; None if all segments ran.
        images: one prediction per image, in order.
        device: device that computed them, `cpu` or `cuda`.
    """

    bundle: str
    digest: str
    runtime: str
    exits: int
    state: str | None
    images: tuple[Prediction, ...]
    device: str = "cpu"

    @property
    def continuing(self) -> int:
        """How many images have not exited and are in the state file."""
        return sum(image.error is None and image.label is None for image in self.images)

    @property
    def failed(self) -> int:
        """How many images could not be read."""
        return sum(image.error is not None for image in self.images)

    def as_dict(self) -> dict[str, Any]:
        """What `offramp predict --json` prints: plain values, with exits counted from 1."""
        return {
            "bundle": self.bundle,
            "digest": self.digest,
            "runtime": self.runtime,
            "device": self.device,
            "exits": self.exits,
            "state": self.state,
            "waiting": self.continuing,
            "images": [image.row(self.exits) for image in self.images],
        }


@check_arguments
def predict(
    bundle: Path | str,
    images: Iterable[Path | str] = (),
    *,
    runtime: Runtime = "onnx",
    batch_size: int = 1,
    first: int | None = None,
    from_: int | None = None,
    state: Path | str | None = None,
    progress: Progress = no_progress,
    each: Callable[[Prediction], None] | None = None,
) -> Predictions:
    """Predict image files with a bundle; or run its first segments only, or continue after them on another machine.

    Args:
        bundle: folder that `export` wrote.
        images: image files, and folders of images.
        runtime: in float32: `onnx` and `openvino` on the CPU, `onnx-cuda` and `onnx-tensorrt` on a GPU.
        batch_size: images per batch; above 1, the time of an image is its share of the time of the batch.
        first: run only the first N segments; images that have not exited are written to `state`.
        from_: continue after the first N segments with the images in `state`.
        state: file that `first` writes and `from_` reads.
        progress: called with a text and the number of images; see `offramp.progress`.
        each: called with every prediction as soon as it is computed.
    Raises:
        ParameterError: if arguments contradict each other or are out of range.
        ValueError: if the bundle or the state file is missing, damaged or of another version.
    """
    stream = predict_stream(
        bundle, images, runtime=runtime, batch_size=batch_size, first=first, from_=from_, state=state
    )
    done = []
    with progress("predicting", stream.total) as advance:
        for prediction in stream.predictions:
            if each is not None:
                each(prediction)
            done.append(prediction)
            advance(1)
    manifest = stream.bundle.manifest
    written = None if first is None else str(state)
    return Predictions(str(bundle), manifest.digest, runtime, manifest.exits, written, tuple(done), stream.device)


def predict_stream(
    bundle: Path | str,
    images: Iterable[Path | str] = (),
    *,
    runtime: Runtime = "onnx",
    batch_size: int = 1,
    first: int | None = None,
    from_: int | None = None,
    state: Path | str | None = None,
) -> PredictionStream:
    """As `predict`, image by image: for more images than results that fit memory. Arguments and errors are the same."""
    images = tuple(images)
    _check(images, batch_size, first, from_, state)
    opened = open_bundle(bundle, runtime, begin=from_ or 0, end=first)
    if first == len(opened.manifest.parts):
        message = f"first={first} are all segments of {bundle}: leave it out, nothing would be left to run elsewhere"
        raise with_parameters(ValueError(message), "first")
    predictions, total = _predictions(opened, images, batch_size, None if state is None else Path(state))
    warm_up(opened, max(1, min(batch_size, total)))
    return PredictionStream(opened, predictions, total, "cuda" if runtime in PROVIDERS else "cpu")


def _check(images: tuple[Any, ...], batch_size: int, first: int | None, from_: int | None, state: object) -> None:
    if batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, got {batch_size}", "batch_size")
    if first is not None and from_ is not None:
        raise ParameterError("first and from_ cannot be combined: each runs on its own machine", "first", "from_")
    for name, value in (("first", first), ("from_", from_)):
        if value is not None and (value < 1 or state is None):
            raise ParameterError(
                f"{name} must be a number of segments of at least 1, and needs state, a file", name, "state"
            )
    if state is not None and first is None and from_ is None:
        raise ParameterError("state needs first or from_, a number of segments", "state", "first", "from_")
    if from_ is not None and images:
        raise ParameterError("from_ continues with the images in state; omit other images", "from_", "state")
    if from_ is None and not images:
        raise ParameterError("no images were given: name image files or folders")


def _predictions(
    opened: Bundle, images: tuple[Path | str, ...], size: int, state: Path | None
) -> tuple[Iterator[Prediction], int]:
    """The predictions as they are computed, and how many there will be."""
    if opened.begin:
        assert state is not None
        partial = partial_state.load(state, opened)
        return predict_rest(opened, partial, size), len(partial.names)
    files, empty = find([Path(image) for image in images])
    size = max(1, min(size, len(files)))
    rows = predictions(opened, files, size) if state is None else begin(opened, files, size, state)
    return chain(empty, rows), len(files) + len(empty)
