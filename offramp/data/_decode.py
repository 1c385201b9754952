"""From encoded images to uint8 arrays: every image bounded, every bad one named, threads and a progress bar."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from offramp.images import BAD_EXIF, WIDE, BadImage, Fit, decode, default_fit, open_image, resize_and_crop
from offramp.lookup import with_parameters
from offramp.progress import Progress
from offramp.text import quantity

CHUNK = 128  # images per task
SHOWN = 5  # bad images that an error names
SAMPLE = 1000  # images whose headers decide the default size

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

T = TypeVar("T")
R = TypeVar("R")


class Resizing(NamedTuple):
    """How a user wants images to be resized and cropped; see `offramp.images.default_fit`."""

    resize: int | None
    crop: float | None
    interpolation: str

    def fit(self, size: int) -> Fit:
        """The fit for images of this side."""
        return default_fit(size, self.resize, crop=self.crop, interpolation=self.interpolation)


class Encoded(NamedTuple):
    """An image as it is stored: its bytes or its file, and what to call it in an error."""

    data: bytes | Path
    where: str


class Looked(NamedTuple):
    """How many images have each remark, such as their kind; and (row, image and reason) of those that are damaged."""

    remarks: dict[str, int]
    damaged: list[tuple[int, str]]


def decode_centre(data: bytes | Path, fit: Fit) -> tuple[UInt8[np.ndarray, "3 H W"], tuple[str, ...]]:
    """One image, resized and cropped by `fit`, and its remarks; see `offramp.images.decode`."""
    return decode(data, lambda image: resize_and_crop(image, fit))


def in_order(pool: ThreadPoolExecutor, task: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """`map` over a pool that never takes more than `depth` items ahead, so that memory stays bounded."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(task, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def each_image(
    items: Iterable[Encoded],
    count: int,
    task: Callable[[int, bytes | Path], tuple[str, ...]],
    *,
    name: str,
    title: str,
    progress: Progress,
    skip: bool | None = None,
) -> Looked:
    """Run `task(index, data)` on all images in threads; it returns remarks such as the kind of an image.

    Raises:
        ValueError: naming the damaged images, after all were tried, unless `skip`; None: they cannot be skipped.
    """
    kinds: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []

    def run(chunk: list[tuple[int, Encoded]]) -> tuple[list[str], list[tuple[int, str]]]:
        good: list[str] = []
        failed: list[tuple[int, str]] = []
        for index, item in chunk:
            try:
                good.extend(task(index, item.data))
            except BadImage as error:
                failed.append((index, f"{item.where} ({error})"))
        return good, failed

    workers = min(16, (os.cpu_count() or 1) + 1)
    with ThreadPoolExecutor(workers) as pool, progress(title, count) as advance:
        for decoded, failed in in_order(pool, run, chunks(enumerate(items), CHUNK), 2 * workers):
            kinds.update(decoded)
            bad.extend(failed)
            advance(CHUNK)
    if bad and not skip:
        way_out = "" if skip is None else ", or leave them out by skip_damaged"
        error = f"{name}: {len(bad)} of {count} images cannot be decoded: {listed(bad)}; repair or remove them{way_out}"
        raise with_parameters(ValueError(error), "skip_damaged")
    return Looked(dict(kinds), bad)


def listed(damaged: Sequence[tuple[int, str]]) -> str:
    """The first damaged images, and how many more there are."""
    more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
    return ", ".join(text for _, text in damaged[:SHOWN]) + more


def decode_into(
    out: UInt8[np.ndarray, "N 3 H W"],
    items: Iterable[Encoded],
    fit: Fit,
    *,
    name: str,
    progress: Progress,
    skip: bool | None = None,
) -> Looked:
    """Decode all images into `out`, in order; see `each_image`. Those that are skipped become black."""

    def task(index: int, data: bytes | Path) -> tuple[str, ...]:
        try:
            out[index], remarks = decode_centre(data, fit)
        except BadImage:
            out[index] = 0
            raise
        return remarks

    return each_image(items, len(out), task, name=name, title=f"decoding {name}", progress=progress, skip=skip)


def guess_size(items: Sequence[bytes | Path]) -> int:
    """32 if the median shorter side of these images is at most 48, else 224; unreadable ones are passed over."""
    sides = []
    for data in items:
        try:
            with open_image(data) as image:
                sides.append(min(image.size))
        except BadImage:  # decoding will name it
            continue
    return 32 if sides and float(np.median(sides)) <= 48 else 224


def image_notes(name: str, remarks: Mapping[str, int]) -> tuple[str, ...]:
    """Lines about images that were not read as they are; see `offramp.images.decode` for the remarks."""
    kinds = {kind: count for kind, count in remarks.items() if kind not in (BAD_EXIF, WIDE)}
    notes = []
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        notes.append(f"{name}: {counts} {'image' if sum(kinds.values()) == 1 else 'images'} became RGB")
    if BAD_EXIF in remarks:
        damaged = quantity(remarks[BAD_EXIF], "image")
        notes.append(f"{name}: {damaged} with damaged EXIF data, read without turning them upright")
    if WIDE in remarks:
        wide = quantity(remarks[WIDE], "image")
        notes.append(
            f"{name}: {wide} with 32-bit integer pixels: values up to 255 are read as 8 bits, larger ones as 16 bits"
        )
    return tuple(notes)
