"""From encoded images to uint8 arrays: every image bounded, every bad one named, threads and a progress bar."""

import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not EPS and the like, which start other programs
LIMIT = 64_000_000  # pixels of one image
CHUNK = 128  # images per task
SHOWN = 5  # bad images that an error names
SAMPLE = 1000  # images whose headers decide the default size

GREY, ALPHA = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"), ("LA", "La", "RGBA", "RGBa")

T = TypeVar("T")
R = TypeVar("R")


class Encoded(NamedTuple):
    """An image as it is stored: its bytes or its file, and what to call it in an error."""

    data: bytes | Path
    where: str


class Fit(NamedTuple):
    """What shape images get: square of side `size`. `resize` is the shorter side before the centre is cropped.

    `resize` None: nothing is resized, an image of another size is an error.
    """

    size: int
    resize: int | None


class BadImage(Exception):
    """One image that cannot be used, and why; `decode_into` gathers them into one error."""


def default_fit(size: int, resize: int | None = None) -> Fit:
    """The usual: shorter side to 256/224 of the size (ImageNet's test protocol), to the size itself up to 64."""
    if size < 1 or (resize is not None and resize < size):
        raise ValueError(f"image_size={size} must be positive and resize={resize} at least as large")
    return Fit(size, resize or (size if size <= 64 else round(size * 256 / 224)))


def open_image(data: bytes | Path) -> Image.Image:
    """Read the header only.

    Raises:
        BadImage: if it is no image of `FORMATS`, or larger than `LIMIT` pixels (an image bomb).
    """
    if isinstance(data, bytes) and not data:
        raise BadImage("there are no image bytes")
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"an image bomb? it has more than the {LIMIT // 10**6} megapixels allowed") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"no {', '.join(FORMATS)} image") from error
    except Exception as error:  # parsers fail in many ways; every one of them is a bad image
        raise BadImage(_reason(error)) from error
    if image.width * image.height > LIMIT:
        image.close()
        raise BadImage(
            f"an image bomb? it is {image.width}x{image.height}, more than the {LIMIT // 10**6} megapixels allowed"
        )
    return image


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def kind_of(mode: str) -> str | None:
    """How an image that is not RGB is counted: grey, palette, CMYK, transparent or other."""
    if mode in GREY:
        return "grey"
    if mode in ALPHA:
        return "transparent"
    return {"RGB": None, "P": "palette", "PA": "palette", "CMYK": "CMYK"}.get(mode, "other")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; 16-bit grey is scaled, transparency is dropped."""
    if image.mode == "F":
        raise BadImage("it has floating-point pixels, whose range is unknown: store it with 8 bits")
    if image.mode.startswith("I"):
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def centre(image: Image.Image, fit: Fit) -> Image.Image:
    """Shorter side to `fit.resize`, then the centre square of `fit.size`, in one antialiased bilinear step."""
    if fit.resize is None:
        if image.size != (fit.size, fit.size):
            raise BadImage(f"it is {image.width}x{image.height}, not {fit.size}x{fit.size}")
        return image
    side = min(image.size) * fit.size / fit.resize
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((fit.size, fit.size), Image.Resampling.BILINEAR, box=box)


def decode(
    data: bytes | Path, finish: Callable[[Image.Image], Image.Image]
) -> tuple[UInt8[np.ndarray, "3 H W"], str | None]:
    """One image, upright and in RGB, as `finish` cuts it, and what it was counted as.

    Raises:
        BadImage: whatever is wrong with it.
    """
    with open_image(data) as image:
        kind = kind_of(image.mode)
        try:
            image.load()
            if image.format == "TIFF" or "exif" in image.info:
                ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(finish(to_rgb(image)))
        except BadImage:
            raise
        except Exception as error:  # see open_image
            raise BadImage(_reason(error)) from error
    return pixels.transpose(2, 0, 1), kind


def centred(data: bytes | Path, fit: Fit) -> tuple[UInt8[np.ndarray, "3 H W"], str | None]:
    """One image, resized and cropped by `fit`."""
    return decode(data, lambda image: centre(image, fit))


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
    task: Callable[[int, bytes | Path], str | None],
    *,
    name: str,
    title: str,
    progress: bool,
) -> dict[str, int]:
    """Run `task(place, data)` on all images in threads; it answers what the image is counted as.

    Returns: how many there are of each kind that is not RGB.

    Raises:
        ValueError: naming the bad images, after all were tried.
    """
    kinds: Counter[str] = Counter()
    bad: list[str] = []

    def run(chunk: list[tuple[int, Encoded]]) -> tuple[list[str], list[str]]:
        good, failed = [], []
        for place, item in chunk:
            try:
                kind = task(place, item.data)
            except BadImage as error:
                failed.append(f"{item.where} ({error})")
            else:
                good.extend([kind] if kind else [])
        return good, failed

    workers = min(16, (os.cpu_count() or 1) + 1)
    with ThreadPoolExecutor(workers) as pool, _Bar(title, count, progress) as advance:
        for found, failed in in_order(pool, run, chunks(enumerate(items), CHUNK), 2 * workers):
            kinds.update(found)
            bad.extend(failed)
            advance(CHUNK)
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError(
            f"{name}: {len(bad)} of {count} images cannot be decoded: {', '.join(bad[:SHOWN])}{more}; "
            "mend or remove them"
        )
    return dict(kinds)


def decode_into(
    out: UInt8[np.ndarray, "N 3 H W"], items: Iterable[Encoded], fit: Fit, *, name: str, progress: bool
) -> dict[str, int]:
    """Decode all images into `out`, in order; see `each_image`."""

    def task(place: int, data: bytes | Path) -> str | None:
        out[place], kind = centred(data, fit)
        return kind

    return each_image(items, len(out), task, name=name, title=f"decoding {name}", progress=progress)


class _Bar:
    """A progress bar on stderr where somebody looks at it; else nothing."""

    def __init__(self, title: str, total: int, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self.task = self.progress.add_task(title, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self.progress.start()
        return lambda steps: self.progress.advance(self.task, steps)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


def guess_size(items: Sequence[bytes | Path]) -> int:
    """32 where the median shorter side of these images is at most 48, else 224; unreadable ones are passed over."""
    sides = []
    for data in items:
        try:
            with open_image(data) as image:
                sides.append(min(image.size))
        except BadImage:  # decoding will name it
            continue
    return 32 if sides and float(np.median(sides)) <= 48 else 224


def became_rgb(name: str, kinds: dict[str, int]) -> tuple[str, ...]:
    """The one line that says which images were not RGB; none where all were."""
    if not kinds:
        return ()
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return (f"{name}: {counts} images became RGB",)
