"""From image files to rows of predictions; images that cannot be read are named. Runs without torch."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offramp.bundle import partial_state
from offramp.bundle.partial_state import PartialState
from offramp.bundle.preprocess import Preprocessing
from offramp.bundle.read import Bundle
from offramp.bundle.sessions import ArraySegment
from offramp.early_exit.runtime import Answer, Stepper
from offramp.image_files import walk
from offramp.images import BadImage, Pixels
from offramp.lookup import ParameterError

WARM = 3
"""Rounds before the first image; from the second or third on, a runtime takes its usual time."""


LARGEST_BATCH = 4 << 30
"""Bytes that one tensor of a batch may have."""


@dataclass(frozen=True)
class Prediction:
    """The result for one image: a prediction, or `error`, or neither if the image continues on another machine.

    `probability` is in [0, 1]; `exit` is counted from 0 among all exits of the network (`row`, and so tables, CSV and
    JSON, count from 1); `ms` is the time in the network in milliseconds, the share of the image in that of its batch.
    `at_deadline`: a server took the prediction of the deepest exit so far, because the deadline came before the image
    could exit.
    """

    image: str
    label: str | None = None
    index: int | None = None
    probability: float | None = None
    exit: int | None = None
    ms: float | None = None
    error: str | None = None
    at_deadline: bool = False

    def row(self, exits: int) -> dict[str, Any]:
        """Plain values, as in JSON and CSV: `exit` counts from 1, and `final` is true at the last of `exits` exits."""
        return {
            "image": self.image,
            "label": self.label,
            "class": self.index,
            "probability": self.probability,
            "exit": None if self.exit is None else self.exit + 1,
            "final": None if self.exit is None else self.exit + 1 == exits,
            "ms": self.ms,
            "error": self.error,
        }


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Prediction]]:
    """The image files of all paths, those of a folder in the order of their names, and an error for each empty folder.

    A named file is taken whatever its ending. Folders are read as for training (`offramp.image_files.walk`): links are
    followed, hidden files and other endings are left out.
    """
    files: list[Path] = []
    bad: list[Prediction] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(walk(path).images)
            files += inside
            if not inside:
                bad.append(Prediction(str(path), error="the folder contains no images"))
        else:
            files.append(path)
    return files, bad


def read(
    preprocessing: Preprocessing, files: Iterable[Path], size: int
) -> Iterator[tuple[list[Prediction], list[Pixels]]]:
    """Files in batches of `size` readable images: a row per file, those without an error have pixels, in order."""
    rows: list[Prediction] = []
    pixels: list[Pixels] = []
    for file in files:
        try:
            pixels.append(_pixels(preprocessing, file))
            rows.append(Prediction(str(file)))
        except BadImage as error:
            rows.append(Prediction(str(file), error=str(error)))
        if len(pixels) == size:
            yield rows, pixels
            rows, pixels = [], []
    if rows:
        yield rows, pixels


def _pixels(preprocessing: Preprocessing, file: Path) -> Pixels:
    if not file.exists():
        raise BadImage("the file does not exist")
    if not file.is_file():
        raise BadImage("it is a pipe, socket or device")  # reading it may block for ever
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a decoder, about oddities that it could deal with
        return preprocessing.read(file)


def check_batch(bundle: Bundle, size: int, name: str = "batch_size") -> None:
    """Refuse batches that need more memory than `LARGEST_BATCH`: a bundle says how large its tensors are.

    Args:
        name: of the parameter that is this size.
    Raises:
        ParameterError: naming the largest batch size.
    """
    ports = [port for spec in bundle.manifest.parts for port in spec.takes_state + spec.takes_carry]
    bytes_each = 4 * max(math.prod(port.shape) for port in ports)
    if size * bytes_each > LARGEST_BATCH:
        most = max(1, LARGEST_BATCH // bytes_each)
        raise ParameterError(
            f"{name} {size} needs {size * bytes_each / 2**30:,.1f} GiB for the tensors of {bundle.folder}: take at "
            f"most {most}",
            name,
        )


def predictions(
    bundle: Bundle, files: Iterable[Path], size: int, on_batch: Callable[[Stepper, list[str]], None] | None = None
) -> Iterator[Prediction]:
    """A row for every file, in order.

    Args:
        bundle: with all its segments, or the first of them.
        size: images per batch.
        on_batch: called with every batch's stepper and the names of its images, after its segments have run.
    Raises:
        ParameterError: if a batch needs too much memory, see `check_batch`.
    """
    check_batch(bundle, size)
    for rows, pixels in read(bundle.manifest.preprocessing, files, size):
        if not pixels:
            yield from rows
            continue
        began = time.perf_counter()
        stepper = Stepper(bundle.policy, bundle.manifest.preprocessing.normalise(np.stack(pixels)))
        segments = bundle.segments if on_batch is not None else bundle.segments_for(len(pixels))
        ms = _advance(segments, stepper, began) / len(pixels)
        names = [row.image for row in rows if row.error is None]
        if on_batch is not None:
            on_batch(stepper, names)
        predictions = iter(_rows(bundle, stepper, names, ms))
        yield from (row if row.error is not None else next(predictions) for row in rows)


def begin(bundle: Bundle, files: Iterable[Path], size: int, state: Path) -> Iterator[Prediction]:
    """A row for every file by the first segments; at the end, images that have not exited are written to a file.

    Args:
        bundle: opened with its first segments only.
        size: images per batch.
        state: the file, which `offramp.bundle.partial_state.load` reads.
    """
    steppers: list[tuple[Stepper, list[str]]] = []
    yield from predictions(bundle, files, size, lambda stepper, names: steppers.append((stepper, names)))
    partial_state.save(
        partial_state.gather(bundle.manifest, bundle.policy, steppers, len(bundle.segments)), state, bundle.manifest
    )


def predict_rest(bundle: Bundle, partial: PartialState, size: int) -> Iterator[Prediction]:
    """A row for every image of a state file, by the rest of the segments."""
    for begin in range(0, len(partial.names), size):
        names = partial.names[begin : begin + size]
        began = time.perf_counter()
        stepper = partial.stepper(bundle, slice(begin, begin + size))
        yield from _rows(bundle, stepper, names, _advance(bundle.segments, stepper, began) / len(names))


def warm_up(bundle: Bundle, size: int) -> None:
    """Run every open segment on zeros: a runtime's first calls are slow, and would be taken for an image's time."""
    check_batch(bundle, size)
    spec = bundle.manifest.parts[bundle.begin]
    for _ in range(WARM):
        state: Any = tuple(np.zeros((size, *port.shape), port.dtype) for port in spec.takes_state)
        carry: Any = tuple(np.zeros((size, *port.shape), port.dtype) for port in spec.takes_carry)
        if not bundle.begin:
            pixels = np.zeros((size, *spec.takes_state[0].shape), np.uint8)
            stepper = Stepper(bundle.policy, bundle.manifest.preprocessing.normalise(pixels))
            _advance(bundle.segments_for(size), stepper, 0.0)
        for segment in bundle.segments:
            state, carry, logits = segment(state, carry)
            bundle.policy.step({}, logits, spec.exit)


def _advance(segments: Sequence[ArraySegment], stepper: Stepper, began: float) -> float:
    """Run segments until every image has exited; milliseconds since `began`."""
    for segment in segments:
        stepper.advance(segment)
        if stepper.done:
            break
    return 1000 * (time.perf_counter() - began)


def _rows(bundle: Bundle, stepper: Stepper, names: Sequence[str], ms: float) -> Iterator[Prediction]:
    answer, waiting = stepper.answer, set(stepper.alive.tolist())
    assert answer is not None
    for place, (name, (index, probability)) in enumerate(zip(names, _best(answer), strict=True)):
        if place in waiting:
            yield Prediction(name, ms=ms)
        else:
            label = bundle.manifest.classes[index]
            yield Prediction(name, label, index, probability, int(answer.exit[place]), ms)


def _best(answer: Answer) -> Iterator[tuple[int, float]]:
    """The most probable class of each sample, and its probability."""
    logits: Any = answer.logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    for row in probabilities:
        yield int(row.argmax()), float(row.max())
