"""From a name to a data set: find the source's file, read it, cut the splits, and refuse what cannot be trained on."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from offramp.data._duplicates import duplicate_notes
from offramp.data.class_names import look_alikes
from offramp.data.cut_splits import check_splits, cut_splits
from offramp.data.splits import (
    SPLITS,
    CroppingSource,
    DataSet,
    Indices,
    RawDataSet,
    Request,
    Split,
)
from offramp.discovery import Offer, from_outside, with_plugins
from offramp.hyperparameters import arguments
from offramp.lookup import ParameterError, unknown, with_parameters
from offramp.progress import Progress, no_progress
from offramp.python_names import is_python
from offramp.text import quoted

PACKAGE = "offramp.data"

AUGMENTATIONS = (
    "none",
    "flip",
    "crop",
    "crop-flip",
    "crop-normalised",
    "crop-flip-normalised",
    "random-resized-crop",
    "resize-crop-flip",
)
"""`-normalised` pads with zeros after normalising (DBT), the others before; random-resized-crop flips too.

`resize-crop-flip` is MUSE's on ImageNet: the shorter side resized as for evaluation (256 for 224), a random square of
the image's size, half of them mirrored.
"""

ENCODED = ("folder", "parquet", "tar", "hub")
"""The sources of encoded images: they can stream, and leave out damaged images."""

IMBALANCE = 10  # the largest class is this many times the smallest: said to the user

NORMALISE: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # MUSE, MSD, EED, BEED; on CIFAR-100 as well
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # MSDNet, HDKD
    "dbt": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Means and standard deviations of the papers, for pixels in 0..1 (methods and their released code)."""


def available() -> dict[str, str]:
    """{name: what it is} of every data source: the files of this folder that define `build`, and plugins."""
    return with_plugins(PACKAGE, built_in())


def built_in() -> dict[str, str]:
    """{name: what it is} of the data sources of this package."""
    sources = {}
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = file.read_text(encoding="utf-8")
        if re.search(r"^def build\(", text, re.MULTILINE):
            sources[file.stem] = text.splitlines()[0].strip('"')
    return sources


def find(name: str) -> Offer:
    """The code of the source that a name such as `digits` or `folder:PATH` is about; its `build(request)` reads it.

    Args:
        name: as listed, also with `:PATH`; or `python:package.module`, also `python:package.module:function`.
    Raises:
        ValueError: if there is none, naming the nearest, or the source of the path that was given without it; if code
            from outside cannot be imported.
    """
    head = _head(name)
    if head in built_in():
        return import_module(f"{PACKAGE}.{head}")
    source = from_outside(PACKAGE, head)
    if source is None:
        reader = "folder" if Path(name).is_dir() else {".parquet": "parquet", ".tar": "tar"}.get(Path(name).suffix)
        if reader and Path(name).exists():
            raise ParameterError(
                f"unknown data set {quoted(name)}: to read this path, write data={reader}:{name}", "data"
            )
        raise unknown("data set", head, available(), listing="offramp data")
    return source


def _head(name: str) -> str:
    """The source in `SOURCE:PATH`; the whole of `python:MODULE`."""
    return name if is_python(name) else name.partition(":")[0]


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    holdout: int | float = 0.1,
    per_class: int | None = None,
    per_class_includes_holdout: bool = True,
    shared_holdout: bool = False,
    image_size: int | None = None,
    split_seed: int = 0,
    streaming: bool = False,
    skip_damaged: bool = False,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    augmentation: str | None = None,
    normalise: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> DataSet:
    """Read a data set and cut it into train, val, cal and test.

    Args:
        name: digits, cifar10, cifar100, folder:PATH, parquet:PATH, tar:PATH, hub:ID, a plugin's, or python:MODULE.
        data_dir: the data set's own folder (or archive) or its parent; default $OFFRAMP_DATA.
        holdout: share of the training images that is held out, stratified: half val, half cal. 0: neither exists.
            Where the data bring both val and test, that val is halved instead and `holdout` is not used. Data with
            train and val only: val is what is reported on (as everyone does on ImageNet), and becomes test.
            Data that are not divided: 10 % test, `holdout` of all val and cal, the rest train.
        per_class: CIFAR(X) of the DBT paper, X images per class.
        per_class_includes_holdout: whether per_class counts the held-out images too (150: 100 train + 50 held out).
        shared_holdout: use all held-out images as val and as cal (HDKD's single set of 5,000 images), instead of one
            half each; thresholds are then fitted on images that also chose epochs or loss weights.
        image_size: side of the square that folder, parquet and hub images are resized to (default: 32 where the
            median shorter side is at most 48, else 224).
        split_seed: decides which images are held out; independent of the training seed.
        streaming: decode images again for every batch instead of keeping them all (folder, parquet and hub; tar always
            does, and so do images that would need more than 64 GiB when decoded).
        skip_damaged: leave out images that cannot be decoded, and what cannot be read of a shard, instead of refusing
            the data (folder, parquet, hub and tar); `notes` say how many.
        cache_dir: where decoded images are kept; default $OFFRAMP_CACHE, else ~/.cache/offramp.
        progress: called while images are decoded; see `offramp.progress`. Nothing is shown by default.
        augmentation: none, flip, crop, crop-flip, crop-normalised, crop-flip-normalised, random-resized-crop or
            resize-crop-flip (needs `streaming`); default: the augmentation of this source.
        normalise: means and standard deviations of cifar10, cifar100, dbt or imagenet; default: those of this source.
        mean: mean of each channel of pixels in 0..1; default: that of `normalise` or of this source.
        std: standard deviation of each channel, likewise.
        options: of the source, such as `image_column` and `label_column` of parquet.

    Raises:
        ValueError: if the name, an option or the data are bad; one sentence with file, row and what to do.
        FileNotFoundError: if there is nothing where the data should be.
    """
    if not 0 <= holdout < 1:
        raise ParameterError(f"holdout must be a share in [0, 1), got {holdout}", "holdout")
    if image_size is not None and image_size < 1:
        raise ParameterError(f"image_size must be at least 1, got {image_size}", "image_size")
    source, head = find(name), _head(name)
    if skip_damaged and head not in ENCODED:
        message = f"skip_damaged is for {', '.join(f'{kind}:' for kind in ENCODED)}, not for {name}: leave it out"
        raise ParameterError(message, "skip_damaged")
    for option, value, known in (("augmentation", augmentation, AUGMENTATIONS), ("normalise", normalise, NORMALISE)):
        if value is not None and value not in known:
            error = unknown(f"data.{option}", value, known, listing=f"offramp data {head}")
            raise with_parameters(error, f"data.{option}")
    request = request_for(
        name,
        data_dir,
        image_size=image_size,
        streaming=streaming,
        skip_damaged=skip_damaged,
        cache_dir=None if cache_dir is None else str(cache_dir),
        progress=progress or no_progress,
    )
    data = read(source, request, options)
    rows = cut_splits(name, data, holdout, per_class, per_class_includes_holdout, split_seed)
    if shared_holdout and "val" in rows:
        rows["val"] = rows["cal"] = np.union1d(rows["val"], rows["cal"])
    check_splits(name, data.source, rows)
    notes = (*data.notes, *_notes(name, data, rows))
    usual = NORMALISE[normalise] if normalise else (data.mean, data.std)
    constants = _constants(name, data.source.shape[0], mean or usual[0], std or usual[1])
    splits = {split: Split(data.source, rows[split], split) for split in SPLITS if split in rows}
    kind = augmentation or data.augmentation
    _check_augmentation(name, kind, data)
    return DataSet(
        name, splits, data.source.classes, data.source.shape, *constants, kind, notes, data.fit, data.damaged
    )


def request_for(name: str, data_dir: str | Path | None, **options: Any) -> Request:
    """What to ask the source of `name` for.

    Args:
        name: as for `load`.
        data_dir: the data set's own folder (or archive) or its parent; default $OFFRAMP_DATA.
        options: the other fields of `Request`.
    """
    path = "" if is_python(name) else name.partition(":")[2]
    place = str(data_dir) if data_dir is not None else os.environ.get("OFFRAMP_DATA") or None
    return Request(name, path, place, **options)


def read(source: Offer, request: Request, options: Mapping[str, Any]) -> RawDataSet:
    """What a source (see `find`) reads for a request, before any split is cut; errors as of `load`.

    Args:
        options: of the source, such as `image_column` of parquet.
    """
    data = source.build(request, **arguments("data", _head(request.name), source.build, options))
    if not isinstance(data, RawDataSet):
        raise ValueError(f"{request.name}: build must return offramp.data.splits.RawDataSet, got {type(data).__name__}")
    return data


def _check_augmentation(name: str, kind: str, data: RawDataSet) -> None:
    """Refuse random crops of originals where the source has none left, or none larger than the crop."""
    if kind != "resize-crop-flip":
        return
    if not isinstance(data.source, CroppingSource):
        raise ParameterError(
            f"data.augmentation={kind} crops the originals, but {name} keeps images that are cropped already: set "
            "streaming=true with folder:, parquet: or hub:, or take data.augmentation=random-resized-crop",
            "data.augmentation",
            "streaming",
        )
    if data.fit is None or data.fit.resize is None or data.fit.resize <= data.fit.size:
        size = data.source.shape[1]
        raise ParameterError(
            f"data.augmentation={kind} needs images resized to more than the {size} pixels that are cropped: set "
            f"data.resize, such as data.resize={round(size * 256 / 224)}",
            "data.augmentation",
            "data.resize",
        )


def _constants(
    name: str, channels: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, checked."""
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ParameterError(
                f"{what} is for {len(values)} channels, but {name} has {channels}: leave out data.normalise, data.mean "
                "and data.std, or give as many values",
                "data.normalise",
                "data.mean",
                "data.std",
            )
        if not all(math.isfinite(value) and (what == "mean" or value > 0) for value in values):
            above = " and above 0" if what == "std" else ""
            raise ParameterError(f"data.{what} must be finite{above}, got {list(values)}", f"data.{what}")
    return tuple(mean), tuple(std)


def _notes(name: str, data: RawDataSet, rows: dict[str, Indices]) -> tuple[str, ...]:
    """Lines about duplicates and about classes that are much smaller than others."""
    labels = data.source.labels
    counts = np.bincount(labels[rows["train"]], minlength=len(data.source.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    notes = duplicate_notes(name, data.duplicates, labels, rows)
    notes += look_alikes(name, data.source.classes)
    if counts[most] < IMBALANCE * counts[least]:
        return notes
    return *notes, (
        f"{name}: the classes of train are unbalanced: {counts[most]:,} images of {data.source.classes[most]}, "
        f"{counts[least]:,} of {data.source.classes[least]}; accuracy says little about the small classes"
    )
