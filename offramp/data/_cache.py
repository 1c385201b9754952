"""Decoded images on disk, found again by a digest of their files; damaged ones are decoded again."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from offramp.data._duplicates import groups_of, pixel_digests
from offramp.files import reserve

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

VERSION = 2  # raise it when the same files and settings give other pixels
IN_MEMORY = 2 << 30  # bytes that may be kept in memory if nothing can be written to the disk
FILLING, LOCK = ".filling-", "lock"
ABANDONED = 86_400  # seconds after which a folder that is not locked counts as abandoned

Allocate = Callable[[int, int, int, int], np.ndarray]
"""(N, C, H, W) -> uint8 array to be filled."""

Fill = Callable[[Allocate], tuple[np.ndarray, dict[str, Any]]]
"""Allocates and fills the pixels; returns the labels and facts that JSON can hold."""


class Decoded(NamedTuple):
    """Pixels (mapped from disk, copy on write), labels, and what else was found out on the way."""

    pixels: UInt8[np.ndarray, "N C H W"]
    labels: Int64[np.ndarray, "N"]
    facts: dict[str, Any]


def cache_root(cache_dir: str | None) -> Path:
    """Where decoded images are kept: the given folder, $OFFRAMP_CACHE or ~/.cache/offramp.

    Raises:
        ValueError: if there is no home folder to look in.
    """
    folder = cache_dir or os.environ.get("OFFRAMP_CACHE")
    try:
        return Path(folder).expanduser() if folder else Path.home() / ".cache" / "offramp"
    except RuntimeError as error:
        raise ValueError("there is no home folder to keep decoded images in: set $OFFRAMP_CACHE to a folder") from error


def digest_of(file: Path) -> str:
    """Digest of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def key_of(files: Sequence[tuple[str, Path]], settings: dict[str, Any]) -> str:
    """What cached images are found by: names, sizes and contents of the files, and how they are decoded."""
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        digests = list(pool.map(lambda file: (file[0], file[1].stat().st_size, digest_of(file[1])), files))
    text = json.dumps([VERSION, settings, digests], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cached(
    name: str, files: Sequence[tuple[str, Path]], settings: dict[str, Any], fill: Fill, cache_dir: str | None
) -> Decoded:
    """The decoded images of these files: from the cache if they are there and intact, else decoded and kept.

    Args:
        name: of the data set, to begin the folder's name with.
        files: (name within the data set, file) of everything that was read.
        settings: how it is decoded.
        fill: does the work.
        cache_dir: see `cache_root`.

    Raises:
        OSError: if the disk takes nothing and the images are too many to keep in memory.
    """
    root = cache_root(cache_dir)
    target = root / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)[-40:].strip('-')}-{key_of(files, settings)}"
    kept_images = _open(target)
    if kept_images is not None:
        return kept_images
    with workplace(root) as place:
        arrays: list[np.ndarray] = []
        kept = [place is not None]

        def allocate(count: int, channels: int, height: int, width: int) -> np.ndarray:
            shape = (count, channels, height, width)
            try:
                if place is None:
                    raise OSError("nothing can be written there")
                arrays.append(_mapped(place / "pixels.npy", shape))
            except OSError as error:
                kept[0] = False
                arrays.append(_in_memory(shape, root, error))
            return arrays[-1]

        labels, facts = fill(allocate)
        pixels = arrays[-1]
        facts = {**facts, "duplicates": groups_of(pixel_digests(pixels))}
        if place is not None and kept[0]:
            return _keep(place, target, pixels, labels, facts)
    notes = [*facts.get("notes", []), f"{name}: decoded images could not be kept in {root}; they are in memory"]
    return Decoded(pixels, labels, {**facts, "notes": notes})


@contextlib.contextmanager
def workplace(root: Path) -> Iterator[Path | None]:
    """A new folder in the cache that is removed afterwards, or None if nothing can be written."""
    place = lock = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        place = Path(tempfile.mkdtemp(prefix=FILLING, dir=root))
        lock = _locked(place)
    except OSError:
        pass
    try:
        yield place
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(place: Path) -> int | None:
    """Lock a folder that is being filled; the lock ends with this process, however it ends."""
    if fcntl is None:
        return None
    draft = place / "lock-draft"  # nobody may see the lock file before it is locked
    lock = os.open(draft, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(place / LOCK)
    return lock


def _remove_abandoned(root: Path) -> None:
    """Remove folders whose filling was killed: their lock is free or, without a lock, they are a day old."""
    for place in root.glob(f"{FILLING}*"):
        try:
            abandoned = _is_free(place / LOCK) if fcntl else time.time() - place.stat().st_mtime > ABANDONED
        except FileNotFoundError:  # of a version without locks, or this very moment made
            abandoned = place.exists() and time.time() - place.stat().st_mtime > ABANDONED
        except OSError:
            continue
        if abandoned:
            shutil.rmtree(place, ignore_errors=True)


def _is_free(lock_file: Path) -> bool:
    lock = os.open(lock_file, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _mapped(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new array on disk. Its space is taken at once: a disk that fills up under a mapping kills the process."""
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as stream:
        reserve(stream.fileno(), file.stat().st_size)
    return pixels


def _in_memory(shape: tuple[int, ...], root: Path, error: OSError) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64))
    if size > IN_MEMORY:
        raise OSError(
            f"the decoded images need {size / 1e9:.1f} GB in {root} ({error}): free some space, choose "
            "another folder with $OFFRAMP_CACHE, or use streaming"
        ) from error
    return np.empty(shape, dtype=np.uint8)


def _digest(pixels: np.ndarray, labels: np.ndarray, facts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (pixels.reshape(-1).data, np.ascontiguousarray(labels).data, facts.encode()):
        digest.update(part)
    return digest.hexdigest()


def _keep(place: Path, target: Path, pixels: np.ndarray, labels: np.ndarray, facts: dict[str, Any]) -> Decoded:
    """Move what was filled to its place in one step, and open it there."""
    text = json.dumps(facts, sort_keys=True)
    np.save(place / "labels.npy", labels)
    if isinstance(pixels, np.memmap):
        pixels.flush()
    meta = {"digest": _digest(pixels, labels, text), "facts": facts}
    (place / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (place / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what is there is damaged
        target.rename(place / "damaged")
    with contextlib.suppress(OSError):  # another process was quicker: its images are the same
        place.rename(target)
    kept_images = _open(target)
    return kept_images if kept_images is not None else Decoded(np.array(pixels), labels, facts)


def _open(target: Path) -> Decoded | None:
    """What is kept there, or None if there is nothing or it is damaged."""
    try:
        meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
        labels = np.load(target / "labels.npy", allow_pickle=False)
        pixels = np.load(target / "pixels.npy", mmap_mode="c", allow_pickle=False)
        whole = meta["digest"] == _digest(pixels, labels, json.dumps(meta["facts"], sort_keys=True))
        fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and labels.dtype == np.int64
        return Decoded(pixels, labels, meta["facts"]) if whole and fits and len(labels) == len(pixels) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError):
        return None
