"""Which images a run was trained on and which it held out: recorded by digests, and kept whatever the data become."""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from offramp import digests
from offramp.data.splits import SPLITS, DataSet, Indices, Source, Split
from offramp.files import replacing, usual_permissions, write_errors
from offramp.lookup import with_parameters

FORMAT = "offramp-split-1"
UNUSED = "unused"
"""The name under which a record keeps the images that were in no split (`per_class`)."""
BATCH = 1024

Keys = UInt64[np.ndarray, "_"]
"""One number per image, which tells images apart: the first 8 bytes of a BLAKE2b digest."""

Start = Literal["new", "run", "elsewhere"]
"""Where the first weights came from: drawn at random, a run with a record of its own, or anywhere else."""


@runtime_checkable
class FileSource(Protocol):
    """A source whose images are files, one each."""

    @property
    def files(self) -> Sequence[Path] | None:
        """The file of every row, or None if images are not files."""


@runtime_checkable
class ShardSource(Protocol):
    """A source with many images in each file."""

    def identities(self, rows: Indices) -> list[bytes]:
        """What tells images apart without reading them, such as name and size."""

    def contents(self, rows: Indices) -> Iterable[bytes]:
        """The encoded images."""


@dataclass(frozen=True)
class SplitRecord:
    """The split of a run.

    Attributes:
        kind: How images are identified, one of `kinds`.
        splits: The keys of train, val, cal, test and `unused`, in the order of the rows.
        start: Where the first weights came from.
        before: By kind, the keys of images that those weights had been trained on already.
        damaged: How many images were left out because they are damaged (`skip_damaged`); they are in `unused`.
        labels: See `labels_digest`; empty in records of versions without it.
    """

    kind: str
    splits: dict[str, Keys]
    start: Start = "new"
    before: dict[str, Keys] = field(default_factory=dict)
    damaged: int = 0
    labels: str = ""

    def trained(self, kind: str) -> Keys | None:
        """The keys of all images that the weights have been trained on; None if they are not known by this kind."""
        if set(self.before) - {kind} or kind != self.kind:
            return None
        return np.concatenate([self.splits["train"], *self.before.values()])


def kinds(source: Source) -> tuple[str, ...]:
    """How the images of a source can be identified; runs record the first way."""
    if isinstance(source, FileSource) and source.files is not None:
        return ("names", "files") if source.streaming else ("files", "names")
    if isinstance(source, ShardSource):  # the same images may have been in memory
        return ("names", "files", f"pixels {'x'.join(map(str, source.shape))}")
    return (f"pixels {'x'.join(map(str, source.shape))}",)


def keys(source: Source, rows: Indices, kind: str) -> Keys:
    """What tells these images apart: `files` by the files' bytes, `names` by their names and sizes, else by pixels."""
    if isinstance(source, FileSource) and source.files is not None and kind in ("files", "names"):
        files = [source.files[row] for row in rows]
        if kind == "names":
            root = os.path.commonpath(source.files)
            return _numbers([_named(file, root) for file in files])
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
            return np.array([int(text[:16], 16) for text in pool.map(digests.of_file, files)], np.uint64)
    if isinstance(source, ShardSource) and kind in ("files", "names"):
        return _numbers(source.identities(rows) if kind == "names" else source.contents(rows))
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    numbers = [_numbers([image.tobytes() for image in source.batch(part)]) for part in parts]
    return np.concatenate([np.empty(0, np.uint64), *numbers])


def _named(file: Path, root: str) -> bytes:
    """A file's name below the root, in one Unicode form, and its size; names need not be UTF-8."""
    return os.fsencode(unicodedata.normalize("NFC", f"{os.path.relpath(file, root)} {file.stat().st_size}"))


def _numbers(texts: Iterable[bytes]) -> Keys:
    return np.array([int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") for text in texts], np.uint64)


def content_digest(split: Split) -> str:
    """The digest of what a split feeds to a network: ids, labels and pixels; of streamed images the files' bytes."""
    source, rows = split.source, split.indices
    in_files = isinstance(source, FileSource) and source.files is not None
    if source.streaming and (in_files or isinstance(source, ShardSource)):
        return digests.of_arrays([("ids", rows), ("labels", split.labels), ("files", keys(source, rows, "files"))])
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    pixels = [digests.of_arrays([("pixels", source.batch(part))]) for part in parts]
    return digests.of_arrays([("ids", rows), ("labels", split.labels)], *pixels)


def record_of(data: DataSet, start: Start = "new", before: dict[str, Keys] | None = None) -> SplitRecord:
    """The record of a data set's splits, as a run keeps it."""
    source = data.splits["train"].source
    kind = kinds(source)[0]
    used = np.concatenate([split.indices for split in data.splits.values()])
    rows = {name: split.indices for name, split in data.splits.items()}
    rows[UNUSED] = np.setdiff1d(np.arange(len(source), dtype=np.int64), used)
    by_split = {name: keys(source, part, kind) for name, part in rows.items()}
    return SplitRecord(kind, by_split, start, before or {}, data.damaged, labels_digest(data))


def labels_digest(data: DataSet) -> str:
    """The digest of the labels of all splits, in order, and of the classes' names, in one Unicode form."""
    classes = [unicodedata.normalize("NFC", name) for name in data.classes]
    return digests.of_arrays([(name, split.labels) for name, split in sorted(data.splits.items())], *classes)


def save(record: SplitRecord, path: Path) -> None:
    """Write a record, whole or not at all, with the digest of its content."""
    arrays = {f"split:{name}": part for name, part in record.splits.items()}
    arrays |= {f"before:{kind}": part for kind, part in record.before.items()}
    text = json.dumps({"kind": record.kind, "start": record.start, "damaged": record.damaged, "labels": record.labels})
    digest = digests.of_arrays(sorted(arrays.items()), text)
    with write_errors(path), replacing(path) as draft, usual_permissions(draft):
        save_file(arrays, draft, {"format": FORMAT, "about": text, "blake2b": digest})


def load(path: Path) -> SplitRecord | None:
    """Read a record; None if there is none.

    Raises:
        ValueError: if it is damaged or of another version.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(header["about"])
        whole = digests.of_arrays(sorted(arrays.items()), header["about"]) == header["blake2b"]
        if header["format"] != FORMAT or not whole:
            raise ValueError("it was changed since it was written")
        splits = {name.removeprefix("split:"): part for name, part in arrays.items() if name.startswith("split:")}
        before = {name.removeprefix("before:"): part for name, part in arrays.items() if name.startswith("before:")}
        known = about.get("damaged", 0), about.get("labels", "")
        return SplitRecord(about["kind"], splits, about["start"], before, *known)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is damaged ({why}): it says which images the run was trained on; restore it, or train again"
        ) from None


def same(data: DataSet, record: SplitRecord, names: Sequence[str]) -> bool:
    """Whether these splits of a data set hold the very images that were recorded, in the same order."""
    source = data.splits["train"].source
    return record.kind in kinds(source) and all(
        (name in data.splits) == (name in record.splits)
        and (
            name not in data.splits
            or (
                len(data.splits[name]) == len(record.splits[name])
                and np.array_equal(keys(source, data.splits[name].indices, record.kind), record.splits[name])
            )
        )
        for name in names
    )


def restored(data: DataSet, record: SplitRecord, owner: str, use_new: bool) -> DataSet:
    """The data set with the images in the splits where the run had them; `notes` say what is new and what is gone.

    Args:
        owner: the run, for messages.
        use_new: let images that the run has never seen stay in val, cal and test, where a new split puts them; else
            they are left out.
    Raises:
        ValueError: if the images cannot be identified as before, or a split is now empty.
    """
    if same(data, record, ("val", "cal", "test")):
        return data
    source = data.splits["train"].source
    if record.kind not in kinds(source):
        raise with_parameters(
            ValueError(
                f"{data.name} cannot be compared with what {owner} was trained on: its images were identified by "
                f"{record.kind}, these are {' or '.join(kinds(source))}; name the data of its training by data_dir"
            ),
            "data_dir",
        )
    every = np.arange(len(source), dtype=np.int64)
    known = keys(source, every, record.kind)
    homes, new = _homes(data, record, known)
    for name, split in data.splits.items() if use_new else ():
        if name != "train":
            homes[split.indices[new[split.indices]]] = name
    splits = {name: Split(source, every[homes == name], name) for name in SPLITS if name in record.splits}
    empty = [name for name, split in splits.items() if name != "train" and not len(split)]
    if empty:
        raise with_parameters(
            ValueError(
                f"{data.name} contains none of the {empty[0]} images of {owner}, and no new ones to take instead: name "
                "the data by data_dir"
            ),
            "data_dir",
        )
    notes = (*data.notes, *_changes(data.name, record, known, new, owner, use_new))
    return dataclasses.replace(data, splits=splits, notes=notes)


def _homes(data: DataSet, record: SplitRecord, known: Keys) -> tuple[np.ndarray, np.ndarray]:
    """The split of every row, and which rows are new; of images that are there twice, each stays where it is."""
    homes = np.full(len(known), UNUSED, dtype=f"U{len(UNUSED)}")
    new = np.ones(len(known), bool)
    for name in (UNUSED, *reversed(SPLITS)):
        rows = np.isin(known, record.splits.get(name, np.empty(0, np.uint64)))
        homes[rows], new = name, new & ~rows
    for name, split in data.splits.items():
        stays = np.isin(known[split.indices], record.splits.get(name, np.empty(0, np.uint64)))
        homes[split.indices[stays]] = name
    return homes, new


def _changes(
    name: str, record: SplitRecord, known: Keys, new: np.ndarray, owner: str, use_new: bool
) -> tuple[str, ...]:
    """What is new and what is gone, in a line each."""
    notes = []
    if new.any():
        done = (
            "are used where they fell into val, cal or test" if use_new else "are left out (naming data_dir uses them)"
        )
        notes.append(f"{name}: images that {owner} was not made with: {int(new.sum()):,}; they {done}")
    missing = {split: int((~np.isin(part, known)).sum()) for split, part in record.splits.items()}
    lost = ", ".join(f"{count:,} of {len(record.splits[split]):,} {split}" for split, count in missing.items() if count)
    if lost:
        notes.append(f"{name}: images of {owner} that are gone: {lost}")
    return tuple(notes)


def changed(data: DataSet, record: SplitRecord, owner: str) -> str:
    """What differs between the data and the record, for a run to continue; empty if they are the same."""
    if same(data, record, (*SPLITS,)):
        return "" if record.labels in ("", labels_digest(data)) else "its images have other labels"
    source = data.splits["train"].source
    if record.kind not in kinds(source):
        return f"its images were identified by {record.kind}, these are {' or '.join(kinds(source))}"
    known = keys(source, np.arange(len(source), dtype=np.int64), record.kind)
    _, new = _homes(data, record, known)
    missing = sum(int((~np.isin(part, known)).sum()) for part in record.splits.values())
    moved = sum(
        int((~np.isin(keys(source, split.indices, record.kind), record.splits.get(name, known[:0]))).sum())
        for name, split in data.splits.items()
    )
    return f"{int(new.sum()):,} images are new, {missing:,} are gone, {moved:,} would be in another split than before"
