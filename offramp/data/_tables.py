"""Tables in the Hub's layout: Parquet files as shards, and the split that a file's name says."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from offramp.image_files import walk
from offramp.lookup import with_parameters

ROWS = 512  # rows read at a time

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")


class Shard(NamedTuple):
    """A table in one piece.

    Attributes:
        where: Its name in errors.
        rows: Its length.
        schema: Its Arrow schema.
        batches: (column) -> the column, batch by batch, in order.
    """

    where: str
    rows: int
    schema: Any
    batches: Callable[[str], Iterator[Any]]


def open_shard(file: Path, skip: bool | None = None) -> Shard:
    """A Parquet file; with `skip`, rows that cannot be read are nulls; None: they cannot be skipped.

    Raises:
        ValueError: if it is not one, or not whole; when it is read, naming the rows that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = _first_line(error)
        raise ValueError(
            f"{file} is not a whole Parquet file ({reason}): it may be truncated, download it again"
        ) from error
    with table:
        return Shard(str(file), table.metadata.num_rows, table.schema_arrow, partial(_batches, file, skip=skip))


def _batches(file: Path, column: str, *, skip: bool | None) -> Iterator[Any]:
    """A column of a Parquet file; with `skip`, nulls for the rest of a row group that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        start = 0
        for group in range(opened.num_row_groups):
            end, done = start + opened.metadata.row_group(group).num_rows, start
            try:
                for batch in opened.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
                    yield batch.column(0)
                    done += len(batch)
            except (pa.ArrowException, OSError) as error:
                if not skip:
                    way_out = "" if skip is None else ", or leave these rows out by skip_damaged"
                    message = (
                        f"{file}, rows {done} to {end - 1}: {column!r} cannot be read ({_first_line(error)}); the file "
                        f"may be damaged, download it again{way_out}"
                    )
                    raise with_parameters(ValueError(message), "skip_damaged") from error
                yield pa.nulls(end - done)
            start = end


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def split_of(path: str) -> str | None:
    r"""Which split a file's name \(or its folder's\) names: train, val, test or None."""
    splits = _splits_in(path)
    return splits[-1] if splits else None


def shard_files(root: Path, ending: str) -> list[Path]:
    """The shards in a folder and in those within it, by name, hidden ones left out; or the file itself.

    Args:
        ending: of their names, such as `.tar`, in any case of its letters.
    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming a shard that is compressed, a link that leads nowhere, and two names of one file.
    """
    if not root.is_dir():
        return [root]
    found = walk(root)
    if found.repeated:
        raise ValueError(f"{found.repeated[0]} would be read twice, because of a link to it or in it: remove the link")
    for link in found.broken:
        if link.suffix.lower() == ending:
            raise ValueError(f"{link} is a link that leads nowhere: restore the file, or remove the link")
    for file in found.others:
        if file.name.lower().endswith(tuple(ending + packing for packing in COMPRESSED)) or file.suffix == ".tgz":
            raise ValueError(f"{file} is compressed, so that no image can be read by itself: unpack or move it")
    files = sorted(file for file in found.others if file.suffix.lower() == ending)
    if not files:
        raise FileNotFoundError(f"{root} contains no *{ending} files: name the folder of the shards")
    first = {file.resolve(): file for file in reversed(files)}
    for file in files:
        if file != first[file.resolve()]:
            raise ValueError(f"{first[file.resolve()]} and {file} are one file: remove one of them")
    return files


def shards_by_split(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files in the Hub's layout, by split, in order; {"all": files} if no name contains a split, or all say train.

    Raises:
        ValueError: if only some names do, or a shard of a numbered series is missing.
    """
    base = root if root.is_dir() else root.parent
    named = {file: split_of(str(file.relative_to(base))) for file in sorted(files)}
    parts: dict[str, list[Path]] = {}
    for file, split in named.items():
        if split is None and any(named.values()):
            raise ValueError(f"{file} does not say which split it belongs to: put train, val or test in its name")
        parts.setdefault(split or "all", []).append(file)
    _check_series(files)
    if [*parts] == ["train"]:
        return {"all": parts["train"]}
    return {split: parts[split] for split in ("all", "train", "val", "test") if split in parts}


def split_notes(root: Path, parts: Mapping[str, Sequence[Path]]) -> list[str]:
    """Lines about names that say more than a split, such as train_extra: what their shards are used for.

    Args:
        parts: as of `shards_by_split`.
    """
    base, notes = root if root.is_dir() else root.parent, []
    for split, files in parts.items():
        names = {str(file.relative_to(base)) for file in files}
        several = sorted(name for name in names if len(_splits_in(name)) > 1)
        if several:
            more = f" (and {len(several) - 1} more)" if len(several) > 1 else ""
            notes.append(f"{base / several[0]}{more} is used for {split_of(several[0])}, the last split in its name")
        series = sorted({_series(name) for name in names if split_of(name)})
        if len(series) > 1:
            used = "train" if split == "all" else split
            notes.append(f"{root}: {used} has shards of several names ({', '.join(series)}): all of them are used")
    return notes


def _splits_in(path: str) -> list[str]:
    """The splits that a path names, each once, in order of their last words."""
    words = [SPLIT_WORDS[word] for word in re.split(r"[/_.\-]", path.lower()) if word in SPLIT_WORDS]
    return [split for place, split in enumerate(words) if split not in words[place + 1 :]]


def _series(path: str) -> str:
    """The part of a path that names its split, without numbers and what follows them: `train` of `a/train-00.tar`."""
    part = next(part for part in reversed(Path(path).with_suffix("").parts) if _splits_in(part))
    return re.split(r"[_.\-]?\d", part)[0] or part


def _check_series(files: Sequence[Path]) -> None:
    """Refuse `train-00000-of-00003.parquet` without its other shards."""
    names = {str(file) for file in files}
    for file in files:
        numbered = re.search(r"-(\d+)-of-(\d+)(?=\.(?:parquet|tar)$)", str(file))
        for number in range(int(numbered[2]) if numbered else 0):
            assert numbered is not None
            fellow = str(file).replace(numbered[0], f"-{number:0{len(numbered[1])}}-of-{numbered[2]}")
            if fellow not in names:
                raise ValueError(f"{fellow} is missing, one of {int(numbered[2])} shards: download it again")
