"""What a data set is: a source of images, and the splits train, val, cal and test that are cut from it.

`train` fits weights; `val` chooses epochs; `cal` fits thresholds and risk bounds; `test` is read once to report.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, UInt8

from offramp.images import Fit
from offramp.lookup import with_parameters
from offramp.progress import Progress, no_progress

Indices = Int64[np.ndarray, "_"]
"""Rows of a source. They are the samples' ids: unique within a data set, the same in every run."""
Images = UInt8[np.ndarray, "B C H W"]
"""The pixels of some images, 0..255."""

SPLITS = ("train", "val", "cal", "test")


@runtime_checkable
class Source(Protocol):
    """N labelled images of one shape (channels, height, width), in a fixed order, all splits together."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the C classes."""

    @property
    def labels(self) -> Int64[np.ndarray, "N"]:
        """The class index of every image."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    def streaming(self) -> bool:
        """True if images are decoded for every batch, False if all of them are in memory."""

    def __len__(self) -> int:
        """N."""

    def batch(self, indices: Indices) -> UInt8[np.ndarray, "B C H W"]:
        """The images of these rows, 0..255."""


@runtime_checkable
class CroppingSource(Protocol):
    """A source that cuts random crops from its originals, which images that were cropped already lack."""

    def crops(self, indices: Indices, draws: Float[Any, "B 10 4"], out: Images | None = None) -> Images:
        """A random part of each image, resized; `draws` as `offramp.data.augment.boxes` takes them.

        Written to `out`, if given, and returned.
        """

    def windows(self, indices: Indices, draws: Float[Any, "B 2"], out: Images | None = None) -> Images:
        """A random square of each image once its shorter side is resized; `draws` say where, in [0, 1).

        Written to `out`, if given, and returned.
        """


@dataclass(frozen=True)
class ArraySource:
    """Images that are decoded already: an array (N, C, H, W) in memory or mapped from the cache.

    `files` are those that the rows were decoded from, where each image is a file.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int64[np.ndarray, "N"]
    pixels: UInt8[np.ndarray, "N C H W"]
    streaming: bool = False
    files: Sequence[Path] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.pixels.shape[1], self.pixels.shape[2], self.pixels.shape[3]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Indices) -> UInt8[np.ndarray, "B C H W"]:
        """The images of these rows, 0..255."""
        return np.asarray(self.pixels[indices])


@dataclass(frozen=True)
class Split:
    """Some rows of a source under a name: train, val, cal or test."""

    source: Source
    indices: Indices
    name: str

    @property
    def ids(self) -> Indices:
        """The samples' ids, unique within the data set: the same as `indices`."""
        return self.indices

    @property
    def labels(self) -> Indices:
        """The class index of every sample, in the order of `indices`."""
        labels: Indices = self.source.labels[self.indices]
        return labels

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training.

    `splits` holds "train" and "test", and "val" and "cal" unless nothing was held out. `mean` and `std` normalise
    pixels scaled to 0..1, one value per channel. `augmentation` is one of `offramp.data.augment.AUGMENTATIONS`.
    `notes` are lines that the user should see (images that became RGB, files that were left out). `fit` is how images
    were resized and cropped, None if they came in their size.
    """

    name: str
    splits: dict[str, Split]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    notes: tuple[str, ...] = ()
    fit: Fit | None = None
    damaged: int = 0


@dataclass(frozen=True)
class Request:
    """What `load` asks of a source's `build`: `path` is the text after the colon of `folder:PATH` and the like."""

    name: str
    path: str = ""
    data_dir: str | None = None
    image_size: int | None = None
    streaming: bool = False
    skip_damaged: bool = False
    cache_dir: str | None = None
    progress: Progress = no_progress


@dataclass(frozen=True)
class RawDataSet:
    """What a source's `build` returns: images, and the rows of each part of the original data.

    The parts are {train, test}, {train, val, test}, {train, val} or, for undivided data, {all}. `fit` as in
    `DataSet`; `duplicates` are the rows of equal images, a list for each; `damaged` as in `DataSet`.
    """

    source: Source
    parts: dict[str, Indices]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    notes: tuple[str, ...] = field(default=())
    fit: Fit | None = None
    duplicates: Sequence[Sequence[int]] = ()
    damaged: int = 0


def consecutive(counts: dict[str, Any]) -> dict[str, Indices]:
    """Rows of parts that follow one another: {"train": 3, "test": 2} -> {"train": [0, 1, 2], "test": [3, 4]}."""
    ends = np.cumsum([0, *counts.values()])
    return {name: np.arange(a, b, dtype=np.int64) for name, a, b in zip(counts, ends[:-1], ends[1:], strict=True)}


def shuffled(rows: Indices, *seed: int) -> Indices:
    """The rows in an order that depends on the seed alone, in every version of numpy (RandomState is frozen)."""
    return np.random.RandomState([part & 0xFFFFFFFF for part in seed]).permutation(rows).astype(np.int64)


def halves(labels: Int64[np.ndarray, "N"], rows: Indices, seed: int) -> tuple[Indices, Indices]:
    """Two stratified halves of some rows; what is odd goes where less is.

    Raises:
        ValueError: if a class has one row only, for then it would be missing from one half.
    """
    first: list[Indices] = []
    second: list[Indices] = []
    surplus = 0
    for label in np.unique(labels[rows]):
        of_class = shuffled(rows[labels[rows] == label], seed, int(label), 1)
        if len(of_class) < 2:
            raise ValueError(f"class {int(label)} has one image to share between val and cal: give it at least two")
        cut = len(of_class) // 2 + (len(of_class) % 2 if surplus <= 0 else 0)
        surplus += 2 * cut - len(of_class)
        first.append(of_class[:cut])
        second.append(of_class[cut:])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def take(
    labels: Int64[np.ndarray, "N"], rows: Indices, share: int | float, least: int, seed: int
) -> tuple[Indices, Indices]:
    """(taken, left): a stratified share of the rows, at least `least` and never all of a class."""
    taken: list[Indices] = []
    for label in np.unique(labels[rows]):
        of_class = shuffled(rows[labels[rows] == label], seed, int(label))
        count = max(least, round(share * len(of_class)))
        if count >= len(of_class):
            raise ValueError(
                f"class {int(label)} has {len(of_class)} images, too few to set {count} of them aside and train on the "
                "rest: give it more images, or hold out less"
            )
        taken.append(of_class[:count])
    chosen = np.sort(np.concatenate(taken))
    return chosen, np.setdiff1d(rows, chosen)


def subset(labels: Int64[np.ndarray, "N"], rows: Indices, per_class: int, seed: int) -> Indices:
    """`per_class` rows of every class; a smaller subset is part of a larger one with the same seed.

    Raises:
        ValueError: if a class has fewer.
    """
    chosen: list[Indices] = []
    for label in np.unique(labels[rows]):
        of_class = shuffled(rows[labels[rows] == label], seed, int(label), 2)
        if len(of_class) < per_class:
            raise with_parameters(
                ValueError(
                    f"class {int(label)} has {len(of_class)} images to train on, fewer than "
                    f"per_class={per_class}: ask for fewer"
                ),
                "per_class",
            )
        chosen.append(of_class[:per_class])
    return np.sort(np.concatenate(chosen))
