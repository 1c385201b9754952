"""Encoded images of tables where any of them can be read at any time: of Parquet in one file of the cache, of Arrow.

Parquet compresses and packs rows in groups: to read one image, all of its group would have to be unpacked. Its images
are therefore copied once, as they are, into a file of the cache, with an index of their places.
"""

import contextlib
import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

from offramp.data._cache import cache_root, workplace
from offramp.data._checked import stamp
from offramp.data._decode import Encoded
from offramp.data._tables import Shard
from offramp.data.splits import Request

IMAGES, INDEX = "images.bin", "index.npz"


class Rows(NamedTuple):
    """Which shard a row is of: the shards' names, and the first row of each."""

    names: tuple[str, ...]
    starts: tuple[int, ...]

    def where(self, row: int) -> str:
        """The shard, and the row in it."""
        shard = bisect_right(self.starts, row) - 1
        return f"{self.names[shard]}, row {row - self.starts[shard]}"


def rows_of(shards: Sequence[Shard]) -> Rows:
    """The rows of these shards, one after the other."""
    starts = np.cumsum([0, *(shard.rows for shard in shards)])[:-1]
    filled = [index for index, shard in enumerate(shards) if shard.rows]  # bisect wants different starts
    return Rows(tuple(shards[index].where for index in filled), tuple(int(starts[index]) for index in filled))


@dataclass(frozen=True)
class Packed:
    """Images in one file, one after the other: image i from offsets[i] to offsets[i + 1]."""

    file: Path
    offsets: Int64[np.ndarray, "_"]
    keys: UInt64[np.ndarray, "_"]
    rows: Rows

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, row: int) -> bytes:
        """The encoded image."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        with self.file.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def where(self, row: int) -> str:
        """Shard and row."""
        return self.rows.where(row)

    def identity(self, row: int) -> bytes:
        """A digest of its content: the shards may be divided again."""
        return bytes(self.keys[row].tobytes())


@dataclass(frozen=True)
class ArrowImages:
    """Images of Arrow tables, which the library of the Hub maps from disk: read where they are."""

    columns: Sequence[Any]
    rows: Rows

    def __len__(self) -> int:
        return sum(map(len, self.columns))

    def _value(self, row: int) -> Any:
        shard = bisect_right(self.rows.starts, row) - 1
        value = self.columns[shard][row - self.rows.starts[shard]]
        with contextlib.suppress(TypeError, KeyError):  # a struct of bytes and a path, which is never followed
            value = value["bytes"]
        return value

    def read(self, row: int) -> bytes:
        """The encoded image."""
        data: bytes | None = self._value(row).as_py()
        return data or b""

    def where(self, row: int) -> str:
        """Split and row."""
        return self.rows.where(row)

    def identity(self, row: int) -> bytes:
        """Split, row and size."""
        data = self._value(row).as_buffer()
        return f"{self.where(row)} {0 if data is None else data.size}".encode()


Images = Callable[[Shard], Iterator[Encoded]]
"""The encoded images of a shard, in order."""


def packed(request: Request, shards: Sequence[Shard], column: str, files: Sequence[Path], images: Images) -> Packed:
    """The images of Parquet shards, copied into the cache unless they are there.

    Args:
        request: From `load`.
        shards: In order.
        column: Where the images are.
        files: The shards' files; if their names, sizes or times change, they are copied again.
        images: Reads them.

    Raises:
        OSError: if the disk has too little space for them.
        ValueError: if rows of a shard cannot be read, naming them.
    """
    root, rows = cache_root(request.cache_dir), rows_of(shards)
    target = root / f"packed-{stamp(files, 'packed', column, request.skip_damaged)}"
    copy = _open(target, rows)
    if copy is not None:
        return copy
    size = sum(file.stat().st_size for file in files)
    with workplace(root) as place:
        if place is None or shutil.disk_usage(root).free < size:
            raise OSError(
                f"{request.name}: to stream Parquet, its images are copied once into {root}, which has no space for "
                f"{size / 1e9:.1f} GB: free some, or choose another folder with $OFFRAMP_CACHE"
            )
        count = sum(shard.rows for shard in shards)
        with (place / IMAGES).open("wb") as file, request.progress(f"copying {request.name}", count) as advance:
            ends, keys = _copy((item for shard in shards for item in images(shard)), file, advance)
        np.savez(place / INDEX, offsets=np.array([0, *ends], np.int64), keys=np.array(keys, np.uint64))
        with contextlib.suppress(OSError):  # what is there is damaged
            target.rename(place / "damaged")
        with contextlib.suppress(OSError):  # another process was quicker: its images are the same
            place.rename(target)
        copy = _open(target, rows)
    if copy is None:
        raise OSError(f"{target} could not be written: free some space, or choose another folder with $OFFRAMP_CACHE")
    return copy


def _copy(items: Iterator[Encoded], file: BinaryIO, advance: Callable[[int], None]) -> tuple[list[int], list[int]]:
    """Append all images to a file; where each ends, and a digest of each as `split_record` has it."""
    ends, keys, end = [], [], 0
    for item in items:
        assert isinstance(item.data, bytes)
        end += file.write(item.data)
        ends.append(end)
        keys.append(int.from_bytes(hashlib.blake2b(item.data, digest_size=8).digest(), "big"))
        advance(1)
    return ends, keys


def _open(target: Path, rows: Rows) -> Packed | None:
    """What is kept there, or None if there is nothing or it is damaged."""
    try:
        with np.load(target / INDEX, allow_pickle=False) as index:
            offsets, keys = index["offsets"], index["keys"]
        whole = len(offsets) == len(keys) + 1 and (target / IMAGES).stat().st_size == offsets[-1]
        return Packed(target / IMAGES, offsets, keys, rows) if whole else None
    except (OSError, ValueError, KeyError, EOFError):
        return None
