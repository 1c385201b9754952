"""Labelled images for a bundle: of the data set that it was made of, or of any other with classes that it knows."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.lookup import ParameterError, with_parameters
from offramp.runs.bench_images import data_of
from offramp.runs.reporting import Reporter
from offramp.runs.run_data import check_data
from offramp.text import quoted

if TYPE_CHECKING:
    from numpy import ndarray

    from offramp.bundle.manifest import Manifest
    from offramp.bundle.preprocess import Preprocessing
    from offramp.data.splits import RawDataSet

PARTS = ("test", "val", "all")
"""What is evaluated of other data: the first of these that they have."""
FIXED = ("resize", "crop", "interpolation")
"""Options of a source that the preprocessing of a bundle decides."""


class LabelledImages(NamedTuple):
    """N images with labels.

    Attributes:
        data: name of the data set.
        split: `test`, `val` or, of data that are not divided, `all`.
        labels: (N,) class indices of the bundle.
        pixels: numbers of images -> their pixels (B, C, H, W) as the bundle reads them.
    """

    data: str
    split: str
    labels: "ndarray"
    pixels: Callable[["ndarray"], "ndarray"]


def labelled_images(
    folder: Path,
    manifest: "Manifest",
    data: str | None,
    options: Mapping[str, Any],
    data_dir: Path | None,
    reporter: Reporter,
) -> LabelledImages:
    """The images to evaluate a bundle on.

    Args:
        data: name of a data set, as for training; by default the one that the bundle was made of, whose test split is
            taken.
        options: of the source of `data`.
        data_dir: data directory.
    Raises:
        ValueError: if there are no such data, they have no labels, classes that the bundle does not know, or images of
            another shape.
    """
    config = manifest.provenance.get("config")
    trained_on = config.get("data") if isinstance(config, dict) else None
    if data is not None and data != trained_on:
        return _other(folder, manifest, data, options, data_dir, reporter)
    if options:
        message = f"{folder} was made of {trained_on} and its options: leave data.{next(iter(options))} out"
        raise ParameterError(message, f"data.{next(iter(options))}")
    return _test(folder, manifest, data_dir, reporter)


def _test(folder: Path, manifest: "Manifest", data_dir: Path | None, reporter: Reporter) -> LabelledImages:
    """The test split of the data set that the bundle was made of."""
    otherwise = ("data", "name labelled images, such as data=folder:PATH")
    data = data_of(folder, manifest.provenance, data_dir, reporter.working, otherwise)
    data = check_data(data, manifest.classes, manifest.preprocessing.shape, str(folder))
    split = data.splits["test"]
    recorded = manifest.provenance.get("split")
    images = recorded.get("images") if isinstance(recorded, dict) else None
    before = images.get("test") if isinstance(images, dict) else None
    if before not in (None, len(split)):
        reporter.warn(
            f"test of {data.name} has {len(split):,} images here and had {before:,} in training: if the data changed, "
            "the network may have been trained on some of them"
        )
    return LabelledImages(data.name, "test", split.labels, lambda rows: split.source.batch(split.indices[rows]))


def _other(
    folder: Path,
    manifest: "Manifest",
    name: str,
    options: Mapping[str, Any],
    data_dir: Path | None,
    reporter: Reporter,
) -> LabelledImages:
    """Images that the bundle was not made of: their test split, or val, or all."""
    from offramp.meta_device import written

    data = _read(name, manifest.preprocessing, options, data_dir, reporter)
    for note in data.notes:
        reporter.note(note)
    split = next(part for part in PARTS if part in data.parts)
    source, indices = data.source, data.parts[split]
    numbers = _numbers(name, source.classes, manifest.classes, folder)
    read = _decoder(data, manifest.preprocessing)
    shape = manifest.preprocessing.shape
    if read is None and tuple(source.shape) != shape:
        message = f"{name} has images of {written(source.shape)}, but {folder} takes {written(shape)}: name other data"
        raise with_parameters(ValueError(message), "data")
    batch = read or source.batch
    return LabelledImages(name, split, numbers[source.labels[indices]], lambda rows: batch(indices[rows]))


def _read(
    name: str, preprocessing: "Preprocessing", options: Mapping[str, Any], data_dir: Path | None, reporter: Reporter
) -> "RawDataSet":
    """The data set, with images that stay encoded where the source has such."""
    from offramp.data.load import ENCODED, find, read, request_for

    for key in FIXED:
        if key in options:
            raise ParameterError(f"data.{key} is decided by the bundle's preprocessing: leave it out", f"data.{key}")
    encoded = name.partition(":")[0] in ENCODED
    request = request_for(name, data_dir, image_size=preprocessing.size, streaming=encoded, progress=reporter.working)
    return read(find(name), request, {"check": "headers", **options} if encoded else options)


def _decoder(data: "RawDataSet", preprocessing: "Preprocessing") -> "Callable[[ndarray], ndarray] | None":
    """How encoded images become pixels: as the bundle does it; None if the source has pixels.

    The function raises ValueError naming an image that cannot be decoded.
    """
    import numpy as np

    from offramp.data.encoded import EncodedSource
    from offramp.images import BadImage

    if not isinstance(data.source, EncodedSource):
        return None
    images = data.source.images

    def read(rows: "ndarray") -> "ndarray":
        pixels = []
        for row in rows.tolist():
            try:
                pixels.append(preprocessing.read(images.read(row)))
            except BadImage as error:
                raise ValueError(f"{images.where(row)}: {error}; remove it, or replace it") from None
        return np.stack(pixels)

    return read


def _numbers(name: str, classes: Sequence[str], known: Sequence[str], folder: Path) -> "ndarray":
    """The bundle's index of every class of the data: classes are matched by name.

    Raises:
        ValueError: naming the first class that the bundle does not know.
    """
    import numpy as np

    index = {unicodedata.normalize("NFC", each): number for number, each in enumerate(known)}
    for each in classes:
        if unicodedata.normalize("NFC", each) not in index:
            listed = ", ".join(map(quoted, known[:5])) + (", …" if len(known) > 5 else "")
            message = (
                f"{name} has the class {quoted(each)}, which {folder} does not know (its {len(known)} classes: "
                f"{listed}): label the images by these classes"
            )
            raise with_parameters(ValueError(message), "data")
    return np.array([index[unicodedata.normalize("NFC", each)] for each in classes], np.int64)
