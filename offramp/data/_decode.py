"""From encoded images to uint8 arrays: every image bounded, every bad one named, threads and a progress bar."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from offramp.images import BadImage, Fit, centre, decode, open_image

CHUNK = 128  # images per task
SHOWN = 5  # bad images that an error names
SAMPLE = 1000  # images whose headers decide the default size

T = TypeVar("T")
R = TypeVar("R")


class Encoded(NamedTuple):
    """An image as it is stored: its bytes or its file, and what to call it in an error."""

    data: bytes | Path
    where: str


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
    return (f"{name}: {counts} {'image' if sum(kinds.values()) == 1 else 'images'} became RGB",)
