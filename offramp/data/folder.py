"""Image files in folders: folder:PATH with PATH/{train,val,test}/CLASS/… or PATH/CLASS/…, in memory or streaming."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from offramp.data._cache import VERSION, Allocate, cache_root, cached, digest_of
from offramp.data._class_folders import Layout, Listing, scan
from offramp.data._decode import SAMPLE, Encoded, Interpolation, Shape, decode_into, each_image, guess_size, image_notes
from offramp.data._duplicates import groups_of
from offramp.data._shards import usual_augmentation
from offramp.data.load import NORMALISE
from offramp.data.parquet import located
from offramp.data.splits import ArraySource, Indices, RawDataSet, Request, consecutive
from offramp.images import (
    INTERPOLATIONS,
    BadImage,
    Fit,
    decode,
    kind_of,
    open_image,
    resize_and_crop,
    resize_shorter_side,
)


def build(
    request: Request,
    *,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    layout: Layout = "auto",
    check: Literal["full", "headers"] = "full",
) -> RawDataSet:
    """Images in one folder per class, in train/, val/ and test/ or undivided (then a seeded 80/10/10 split).

    Args:
        request: from `load`; `image_size` is the side of the square that images get.
        resize: shorter side before the centre crop; default 256/224 of the size, the size itself up to 64.
        crop: alternative to `resize`: size / resize, such as 0.875.
        interpolation: how images are resized, with antialiasing.
        layout: `auto`: folders named train, val and test are splits; `classes`: every folder is a class.
        check: with streaming: `full` decodes every image once, before the first training on these files, so that
            no bad one stops a run; `headers` only looks at their beginnings.

    Raises:
        FileNotFoundError: if the folder is missing or empty.
        ValueError: if its layout or an image is bad, naming the file.
    """
    if not request.path:
        raise ValueError("folder needs a path: write folder:PATH")
    listing, shape = scan(located(request), layout), Shape(resize, crop, interpolation)
    mean, std = NORMALISE["imagenet"]
    source: ArraySource | FolderSource
    if request.streaming:
        fit = _fit(listing, request, shape)
        source = FolderSource(request.name, listing.classes, listing.labels, listing.files, fit)
        facts = _checked(request, listing, full=check == "full")
    else:
        source, facts = _resident(request, listing, shape)
        fit = Fit(*facts["fit"])
    return RawDataSet(
        source,
        consecutive(listing.counts),
        mean,
        std,
        usual_augmentation(fit.size),
        (*listing.notes, *image_notes(request.name, facts["remarks"]), *facts.get("notes", [])),
        fit,
        facts["duplicates"],
    )


def _fit(listing: Listing, request: Request, shape: Shape) -> Fit:
    every = max(1, len(listing.files) // SAMPLE)
    return shape.fit(request.image_size or guess_size(listing.files[::every]))


def _encoded(listing: Listing) -> Iterator[Encoded]:
    return (Encoded(file, str(file)) for file in listing.files)


def _resident(request: Request, listing: Listing, shape: Shape) -> tuple[ArraySource, dict[str, Any]]:
    """All images decoded, or from the cache, and the facts about them."""

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        fit = _fit(listing, request, shape)
        pixels = allocate(len(listing.files), 3, fit.size, fit.size)
        remarks = decode_into(pixels, _encoded(listing), fit, name=request.name, progress=request.progress)
        return listing.labels, {"remarks": remarks, "fit": list(fit)}

    files = [(str(file.relative_to(listing.root)), file) for file in listing.files]
    settings = {
        "form": "folder",
        "size": request.image_size,
        "shape": list(shape),
        "classes": list(listing.classes),
        "pillow": PIL.__version__,
    }
    decoded = cached(request.name, files, settings, fill, request.cache_dir)
    source = ArraySource(request.name, listing.classes, listing.labels, decoded.pixels, files=listing.files)
    return source, decoded.facts


def _checked(request: Request, listing: Listing, *, full: bool) -> dict[str, Any]:
    """Look at every image once; the facts are kept in the cache by names, sizes and times of the files."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in listing.files]
    key = hashlib.blake2b(json.dumps([VERSION, full, stats]).encode(), digest_size=16).hexdigest()
    record = cache_root(request.cache_dir) / f"checked-{key}.json"
    facts = remembered(record)
    if facts is None:
        digests: dict[int, str] = {}

        def look(index: int, data: bytes | Path) -> tuple[str, ...]:
            if not full:
                return look_at(data)
            assert isinstance(data, Path)
            digests[index] = digest_of(data)
            return look_through(data)

        title = f"checking {request.name}"
        count = len(listing.files)
        remarks = each_image(_encoded(listing), count, look, name=request.name, title=title, progress=request.progress)
        facts = {"remarks": remarks, "duplicates": groups_of(digests[index].encode() for index in sorted(digests))}
        remember(record, facts)
    return facts


def remembered(record: Path) -> dict[str, Any] | None:
    """The facts of an earlier check, or None if there are none, or they are damaged."""
    try:
        facts = json.loads(record.read_text())
        remarks = {str(kind): int(count) for kind, count in facts["remarks"].items()}
        return {"remarks": remarks, "duplicates": [list(map(int, group)) for group in facts["duplicates"]]}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def remember(record: Path, facts: dict[str, Any]) -> None:
    """Keep the facts of a check, where the disk takes them."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        draft = record.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(facts))
        draft.replace(record)
    except OSError:  # the images are checked again next time
        return


def look_at(data: bytes | Path) -> tuple[str, ...]:
    """The kind of an image, if it becomes RGB; from its header."""
    with open_image(data) as image:
        kind = kind_of(image.mode)
    return () if kind is None else (kind,)


def look_through(data: bytes | Path) -> tuple[str, ...]:
    """The remarks of `offramp.images.decode` about an image."""
    return decode(data, lambda image: image.resize((1, 1), Image.Resampling.NEAREST))[1]


Cut = Callable[..., Image.Image]
"""(upright image, place in the batch) -> the square that the network gets."""


def centre(fit: Fit) -> Cut:
    """Resized and cropped to the centre."""
    return lambda image, place: resize_and_crop(image, fit)


def random_box(fit: Fit, draws: Float[Any, "B 10 4"]) -> Cut:
    """A random part, resized; `draws` as `offramp.data.augment.boxes` takes them."""
    from offramp.data.augment import boxes

    def cut(image: Image.Image, place: int) -> Image.Image:
        top, left, height, width = boxes(draws[place : place + 1], image.height, image.width)[0].tolist()
        box = (left, top, left + width, top + height)
        return image.resize((fit.size, fit.size), INTERPOLATIONS[fit.interpolation], box=box)

    return cut


def random_window(fit: Fit, draws: Float[Any, "B 2"]) -> Cut:
    """A random square once the shorter side is resized; `draws` are shares of the free height and width."""
    size, resize = fit.size, fit.resize or fit.size

    def cut(image: Image.Image, place: int) -> Image.Image:
        image = resize_shorter_side(image, resize, fit.interpolation)
        down, right = draws[place].tolist()
        top, left = int(down * (image.height - size + 1)), int(right * (image.width - size + 1))
        return image.crop((left, top, left + size, top + size))

    return cut


@dataclass(frozen=True)
class FolderSource:
    """Images that stay files, decoded anew for every batch: bounded memory, whatever the number of images."""

    name: str
    classes: tuple[str, ...]
    labels: Int64[np.ndarray, "N"]
    files: list[Path]
    fit: Fit
    streaming: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.fit.size, self.fit.size

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Indices) -> UInt8[np.ndarray, "B 3 H W"]:
        """The images of these rows, resized and cropped to the centre.

        Raises:
            ValueError: if a file was changed since it was checked and cannot be decoded, with its name.
        """
        return self._decoded(indices, centre(self.fit))

    def crops(self, indices: Indices, draws: Float[Any, "B 10 4"]) -> UInt8[np.ndarray, "B 3 H W"]:
        """A random part of each original, resized; `draws` as `offramp.data.augment.boxes` takes them.

        Raises:
            ValueError: as `batch`.
        """
        return self._decoded(indices, random_box(self.fit, draws))

    def windows(self, indices: Indices, draws: Float[Any, "B 2"]) -> UInt8[np.ndarray, "B 3 H W"]:
        """A random square of each image once its shorter side is resized as for evaluation.

        Args:
            indices: Rows of the images.
            draws: Where each square lies, as shares in [0, 1) of the free height and width.

        Raises:
            ValueError: as `batch`.
        """
        return self._decoded(indices, random_window(self.fit, draws))

    def _decoded(self, indices: Indices, cut: Cut) -> np.ndarray:
        """The images of these rows, cut by `cut(image, place in the batch)`."""
        out = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for place, row in enumerate(indices):
            try:
                out[place] = decode(self.files[row], partial(cut, place=place))[0]
            except BadImage as error:
                raise ValueError(f"{self.files[row]} cannot be decoded ({error}): repair or remove it") from error
        return out
