"""CIFAR-10 and -100 in four forms: Parquet shards, the python version, the binary version, the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from jaxtyping import Int64, UInt8

from offramp.data._archive import members
from offramp.data._cache import Allocate, Fill, cached
from offramp.data._pickle import pixels_in, read_pickle, text_of
from offramp.data._shards import Columns, fill_from
from offramp.data._tables import Shard, open_shard, shards_by_split
from offramp.data.hub import shards_of
from offramp.data.load import NORMALISE
from offramp.data.splits import ArraySource, RawDataSet, Request, consecutive
from offramp.images import Fit
from offramp.lookup import with_parameters
from offramp.progress import Progress

SIZE = Fit(32, None)


class Cifar(NamedTuple):
    """How one of the two is stored. `python`, `binary`: files by split, then the folder's and archive's name."""

    name: str
    classes: int
    python: dict[str, tuple[str, ...]]
    python_home: str
    python_archive: str  # without its ending
    names_file: str  # of the python version
    names_key: str
    label_key: str
    binary: dict[str, tuple[str, ...]]
    binary_home: str
    binary_archive: str
    binary_names: str
    label_bytes: int  # that begin each record of the binary version
    label_byte: int  # which of them is wanted
    column: str  # of the Parquet shards
    hub: str


def read(cifar: Cifar, request: Request) -> RawDataSet:
    """The data set in the form that is found in `data_dir`.

    Raises:
        FileNotFoundError: if nothing is found there, with the places that were looked at.
        ValueError: if options are invalid, or a file is damaged or refused.
    """
    if request.path:
        raise with_parameters(
            ValueError(f"write {cifar.name} and name its folder by data_dir, not {request.name}"), "data_dir"
        )
    if request.streaming:
        raise ValueError(f"{cifar.name} cannot be streamed: it is held in memory")
    if request.image_size not in (None, 32):
        raise with_parameters(
            ValueError(
                f"{cifar.name} is 32x32 and keeps that size: image_size={request.image_size} is for other sources"
            ),
            "image_size",
        )
    files, fill = _from_hub(cifar, request) if str(request.data_dir).startswith("hub:") else _on_disk(cifar, request)
    settings = {"form": cifar.name, "labels": cifar.column, "pillow": PIL.__version__}
    images = cached(cifar.name, files, settings, fill, request.cache_dir)
    source = ArraySource(cifar.name, tuple(images.facts["classes"]), images.labels, images.pixels)
    mean, std = NORMALISE["cifar10"]
    parts = consecutive(images.facts["parts"])
    # Some images are in train and test of CIFAR itself; as nobody may change that, it is not said.
    return RawDataSet(source, parts, mean, std, augmentation="crop-flip", notes=tuple(images.facts["notes"]))


def _on_disk(cifar: Cifar, request: Request) -> tuple[list[tuple[str, Path]], Fill]:
    """The files of the first form found in the folder, or in its child of the data set's name, and their reader."""
    if request.data_dir is None:
        raise with_parameters(
            FileNotFoundError(f"{cifar.name} needs a folder: name it, or its parent, by data_dir or $OFFRAMP_DATA"),
            "data_dir",
        )
    root = Path(request.data_dir).expanduser()
    if not root.exists():
        raise with_parameters(
            FileNotFoundError(f"{root} does not exist: name the folder of {cifar.name}, or its parent, by data_dir"),
            "data_dir",
        )
    for home in (root, root / cifar.name):
        shards = [file for under in ("", "data", "plain_text", cifar.name) for file in _parquet(home / under)]
        if shards and cifar.column in [field.name for field in open_shard(shards[0]).schema]:
            return _parquet_form(cifar, home, shards, request.progress)
        python, binary = (*_flat(cifar.python), cifar.names_file), (*_flat(cifar.binary), cifar.binary_names)
        for folder, archive, wanted, fill in (
            (cifar.python_home, cifar.python_archive, python, _python_fill),
            (cifar.binary_home, cifar.binary_archive, binary, _binary_fill),
        ):
            place = _place(home, folder, archive, wanted)
            if place is not None:
                files = [place] if place.is_file() else [place / name for name in wanted if (place / name).is_file()]
                return [(file.name, file) for file in files], fill(cifar, place, wanted)
    raise FileNotFoundError(
        f"there is no {cifar.name} in {root} nor in {root / cifar.name}: expected Parquet shards (train-*.parquet, "
        f"test-*.parquet, labels in {cifar.column!r}), {cifar.python_home} or {cifar.binary_home} (folder or .tar.gz)"
    )


def _flat(files: dict[str, tuple[str, ...]]) -> list[str]:
    return [name for names in files.values() for name in names]


def _parquet(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []


def _place(home: Path, folder: str, archive: str, wanted: Sequence[str]) -> Path | None:
    """The folder or archive of an original version at, or in, this place."""
    if home.is_file():
        return home if home.name in _archives(archive, folder) else None
    if any((home / name).is_file() for name in wanted[:-1]):
        return home
    for name in (folder, *_archives(archive, folder)):
        if (home / name).exists():
            return home / name
    return None


def _archives(*stems: str) -> list[str]:
    return [stem + ending for stem in stems for ending in (".tar.gz", ".tgz", ".tar")]


def _parquet_form(
    cifar: Cifar, home: Path, files: list[Path], progress: Progress
) -> tuple[list[tuple[str, Path]], Fill]:
    split = shards_by_split(home, files)
    for part in ("train", "test"):
        if part not in split:
            raise FileNotFoundError(
                f"{home} contains no {part} shards of {cifar.name} ({part}-*.parquet): download them too"
            )
    parts = {part: [open_shard(file) for file in split[part]] for part in ("train", "test")}
    return [(file.name, file) for part in parts for file in split[part]], _shards_fill(cifar, parts, progress)


def _shards_fill(cifar: Cifar, parts: dict[str, list[Shard]], progress: Progress) -> Fill:
    columns = Columns(label=cifar.column, classes=cifar.classes)
    return fill_from(cifar.name, parts, columns, SIZE, progress)


def _from_hub(cifar: Cifar, request: Request) -> tuple[list[tuple[str, Path]], Fill]:
    parts, files, *_ = shards_of(str(request.data_dir).removeprefix("hub:") or cifar.hub)
    return files, _shards_fill(cifar, parts, request.progress)


def _checked(labels: Any, classes: int, where: str) -> Int64[np.ndarray, "N"]:
    """Labels as an array, all of them in range."""
    try:
        if not isinstance(labels, np.ndarray) and not all(type(label) is int for label in labels):
            raise TypeError("it must be a flat list of them")  # nested lists could claim any amount of memory
        array = np.asarray(labels, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: its labels are not integers ({error}); download the file again") from error
    bad = np.flatnonzero((array < 0) | (array >= classes))
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"{where}, row {row}: label {array[row]} is out of range (0..{classes - 1}); correct it")
    return array


def _fill(
    parts: dict[str, list[tuple[UInt8[np.ndarray, "_ 3 32 32"], np.ndarray]]], names: Sequence[str], allocate: Allocate
) -> tuple[np.ndarray, dict[str, Any]]:
    """Copy the batches of all parts into one array."""
    batches = [batch for group in parts.values() for batch in group]
    out = allocate(sum(len(pixels) for pixels, _ in batches), 3, 32, 32)
    np.concatenate([pixels for pixels, _ in batches], out=out)
    counts = {part: sum(len(pixels) for pixels, _ in group) for part, group in parts.items()}
    return np.concatenate([labels for _, labels in batches]), {"parts": counts, "classes": list(names), "notes": []}


def _content(place: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The files' contents; all but the last (the classes' names) must be there."""
    archive_members = members(place, wanted)
    for name in wanted[:-1]:
        if name not in archive_members:
            raise FileNotFoundError(f"{place} has no {name}: download the whole data set")
    return archive_members


def _python_fill(cifar: Cifar, place: Path, wanted: Sequence[str]) -> Fill:
    def one(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        where = str(place / name)
        batch = read_pickle(content, where)
        pixels = pixels_in(batch, where)
        if cifar.label_key not in batch:
            raise ValueError(f"{where} has no {cifar.label_key!r}: it may not be {cifar.name}")
        labels = _checked(batch[cifar.label_key], cifar.classes, where)
        if labels.shape != (len(pixels),):
            raise ValueError(f"{where} has {len(pixels)} images but labels of shape {labels.shape}: download it again")
        return pixels, labels

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        content = _content(place, wanted)
        names = [str(label) for label in range(cifar.classes)]
        if cifar.names_file in content:
            meta = read_pickle(content[cifar.names_file], str(place / cifar.names_file))
            listed = meta.get(cifar.names_key, [])
            if isinstance(listed, list) and len(listed) == cifar.classes:
                names = [text_of(name, f"{place / cifar.names_file}: a class name") for name in listed]
        return _fill({p: [one(f, content[f]) for f in files] for p, files in cifar.python.items()}, names, allocate)

    return fill


def _binary_fill(cifar: Cifar, place: Path, wanted: Sequence[str]) -> Fill:
    record = cifar.label_bytes + 3072

    def one(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        where = str(place / name)
        rows, rest = divmod(len(content), record)
        if rest:
            raise ValueError(f"{where}, row {rows}: the record ends early, so the file is truncated; download it again")
        table = np.frombuffer(content, dtype=np.uint8).reshape(rows, record)
        labels = _checked(table[:, cifar.label_byte], cifar.classes, where)
        return table[:, cifar.label_bytes :].reshape(rows, 3, 32, 32), labels

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        content = _content(place, wanted)
        names = content.get(cifar.binary_names, b"").decode("latin1").split()
        if len(names) != cifar.classes:
            names = [str(label) for label in range(cifar.classes)]
        return _fill({p: [one(f, content[f]) for f in files] for p, files in cifar.binary.items()}, names, allocate)

    return fill
