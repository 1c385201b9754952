"""Tables of encoded images and labels, as Parquet shards or from the Hub: columns, classes, rows by name."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from jaxtyping import Int64

from offramp.data._cache import Allocate, Fill, cached
from offramp.data._decode import SAMPLE, Encoded, became_rgb, decode_into, guess_size
from offramp.data.load import NORMALISE
from offramp.data.splits import ArraySource, Found, Request, consecutive
from offramp.images import Fit, default_fit

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


class Shard(NamedTuple):
    """A table in one piece: its name in errors, its length, its Arrow schema, and its columns, batch by batch."""

    where: str
    rows: int
    schema: Any
    batches: Callable[[str], Iterator[Any]]


def open_shard(file: Path) -> Shard:
    """A Parquet file.

    Raises:
        ValueError: if it is not one, or not whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def broken(error: Exception) -> ValueError:
        reason = str(error).splitlines()[0]
        return ValueError(f"{file} is not a whole Parquet file ({reason}): it may be truncated, get it again")

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise broken(error) from error

    def batches(column: str) -> Iterator[Any]:
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=ROWS, columns=[column], use_threads=False):
                    yield batch.column(0)
        except (pa.ArrowException, OSError) as error:
            raise broken(error) from error

    with table:
        return Shard(str(file), table.metadata.num_rows, table.schema_arrow, batches)


def split_of(path: str) -> str | None:
    """Which split a file's name (or its folder's) speaks of: train, val, test or None."""
    found = [SPLIT_WORDS[word] for word in re.split(r"[/_.\-]", path.lower()) if word in SPLIT_WORDS]
    return found[-1] if found else None


def shards_by_split(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files in the Hub's layout, by split, in order; {"all": files} where no name speaks of a split.

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
    return {split: parts[split] for split in ("all", "train", "val", "test") if split in parts}


def _check_series(files: Sequence[Path]) -> None:
    """Refuse `train-00000-of-00003.parquet` without its two fellows."""
    names = {str(file) for file in files}
    for file in files:
        numbered = re.search(r"-(\d+)-of-(\d+)(?=\.parquet$)", str(file))
        for number in range(int(numbered[2]) if numbered else 0):
            assert numbered is not None
            fellow = str(file).replace(numbered[0], f"-{number:0{len(numbered[1])}}-of-{numbered[2]}")
            if fellow not in names:
                raise ValueError(f"{fellow} is missing, one of {int(numbered[2])} shards: get it again")


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def choose_column(shard: Shard, given: str | None, usual: Sequence[str], *, image: bool) -> str:
    """The column of images or labels: the one given, else the one with a usual name, else the only fitting one.

    Raises:
        ValueError: if it is not there, holds something else, or cannot be told.
    """
    option, fits = ("--data.image-column", _is_image) if image else ("--data.label-column", _is_label)
    columns = [field.name for field in shard.schema]
    if given is not None and given not in columns:
        raise ValueError(f"{shard.where} has no column {given!r} ({option}): it has {', '.join(columns)}")
    fitting = [field.name for field in shard.schema if fits(field.type)]
    if given is not None:
        if given not in fitting:
            kind = shard.schema.field(given).type
            what = "image bytes" if image else "integers or strings"
            raise ValueError(f"{shard.where}: column {given!r} ({option}) holds {kind}, not {what}")
        return given
    known = [name for name in usual if name in fitting]
    if known or len(fitting) == 1:
        return (known or fitting)[0]
    what = "images" if image else "labels"
    raise ValueError(f"{shard.where}: which column holds the {what}? Say {option}, one of {', '.join(columns)}")


def class_names(shard: Shard, column: str) -> tuple[str, ...] | None:
    """The names that the Hub writes into its shards, if any."""
    try:
        features = json.loads((shard.schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def read_labels(
    shards: Sequence[Shard], column: str, classes: Sequence[str] | None
) -> tuple[Int64[np.ndarray, "N"], tuple[str, ...]]:
    """The class index of every row of all shards, and the names of the classes.

    Without names, integers and strings are both taken as names: the distinct ones, sorted, are the classes.

    Raises:
        ValueError: naming file and row, if a label is missing or out of range.
    """
    values: list[Any] = []
    for shard in shards:
        seen = [label for batch in shard.batches(column) for label in batch.to_pylist()]
        for row, label in enumerate(seen):
            if label is None:
                raise ValueError(f"{shard.where}, row {row}: the label ({column}) is missing; fill it in")
            if not isinstance(label, str) and not 0 <= label < (len(classes) if classes else 2**31):
                upper = f"0..{len(classes) - 1}" if classes else "0 and more"
                raise ValueError(f"{shard.where}, row {row}: label {label} is out of range ({upper}); correct it")
        values.extend(seen)
    if classes and not any(isinstance(value, str) for value in values):
        return np.array(values, dtype=np.int64), tuple(classes)
    distinct = sorted(set(values))
    place = {value: index for index, value in enumerate(distinct)}
    return np.array([place[value] for value in values], dtype=np.int64), tuple(str(value) for value in distinct)


def images(shard: Shard, column: str) -> Iterator[Encoded]:
    """The encoded images of a shard, in order. A path beside the bytes is never followed."""
    row = 0
    for batch in shard.batches(column):
        stored = batch.field("bytes") if hasattr(batch, "field") else batch
        for value in stored.to_pylist():
            yield Encoded(value or b"", f"{shard.where}, row {row}")
            row += 1


class Columns(NamedTuple):
    """Where images and labels are (None: to be found), the shorter side before the crop, and what is expected."""

    image: str | None = None
    label: str | None = None
    resize: int | None = None
    classes: int | None = None


def fill_from(
    name: str, parts: dict[str, list[Shard]], columns: Columns, size: Fit | int | None, progress: bool
) -> Fill:
    """What `cached` needs to decode these shards. `size` None: it is guessed from the first images."""

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        shards = [shard for group in parts.values() for shard in group]
        image, label = _columns(shards, columns)
        names = class_names(shards[0], label)
        if columns.classes is not None:
            if names is not None and len(names) != columns.classes:
                raise ValueError(
                    f"{shards[0].where} names {len(names)} classes in {label!r}, but {name} has {columns.classes}"
                )
            names = names or tuple(str(number) for number in range(columns.classes))
        labels, classes = read_labels(shards, label, names)
        fit = (
            size if isinstance(size, Fit) else default_fit(size or guess_size(_first(shards[0], image)), columns.resize)
        )
        pixels = allocate(len(labels), 3, fit.size, fit.size)
        stream = (item for shard in shards for item in images(shard, image))
        kinds = decode_into(pixels, stream, fit, name=name, progress=progress)
        counts = {split: sum(shard.rows for shard in group) for split, group in parts.items()}
        return labels, {"parts": counts, "classes": list(classes), "notes": list(became_rgb(name, kinds))}

    return fill


def _columns(shards: Sequence[Shard], columns: Columns) -> tuple[str, str]:
    """Names of the image and the label column, which every shard must have."""
    image = choose_column(shards[0], columns.image, ("image", "img"), image=True)
    label = choose_column(shards[0], columns.label, ("label", "labels", "class", "target"), image=False)
    for shard in shards[1:]:
        choose_column(shard, image, (), image=True)
        choose_column(shard, label, (), image=False)
    return image, label


def tabular(request: Request, parts: dict[str, list[Shard]], files: list[tuple[str, Path]], columns: Columns) -> Found:
    """A data set of resized images from shards: what `parquet` and `hub` have in common."""
    fill = fill_from(request.name, parts, columns, request.image_size, request.progress)
    settings = {
        "form": "shards",
        "size": request.image_size,
        "columns": list(columns),
        "pillow": PIL.__version__,
        "parts": {split: len(group) for split, group in parts.items()},
    }
    found = cached(request.name, files, settings, fill, request.cache_dir)
    source = ArraySource(request.name, tuple(found.facts["classes"]), found.labels, found.pixels)
    mean, std = NORMALISE["imagenet"]
    rows = consecutive(found.facts["parts"])
    return Found(source, rows, mean, std, usual_augmentation(source.shape[1]), tuple(found.facts["notes"]))


def usual_augmentation(size: int) -> str:
    """For photographs: as on CIFAR up to 64 pixels, as on ImageNet above."""
    return "crop-flip" if size <= 64 else "random-resized-crop"


def _first(shard: Shard, column: str) -> list[bytes]:
    found = []
    for item in images(shard, column):
        assert isinstance(item.data, bytes)
        found.append(item.data)
        if len(found) == SAMPLE:
            break
    return found
