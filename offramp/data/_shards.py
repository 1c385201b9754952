"""Tables of encoded images and labels, as Parquet shards or from the Hub: columns, classes, rows by name."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from offramp.data._cache import Allocate, Fill, cached
from offramp.data._checked import Check, checked
from offramp.data._decode import SAMPLE, Encoded, Resizing, decode_into, guess_size, image_notes
from offramp.data._labels import label_kind, read_labels
from offramp.data._photographs import check_decoder, facts_of, photographs, streams
from offramp.data._tables import Shard
from offramp.data.encoded import Decoder, EncodedSource, Encodings
from offramp.data.splits import ArraySource, RawDataSet, Request
from offramp.images import Fit
from offramp.lookup import with_parameters
from offramp.progress import Progress


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def choose_column(shard: Shard, requested: str | None, usual: Sequence[str], *, image: bool) -> str:
    """The column of images or labels: the given one, else the one with a usual name, else the only suitable one.

    Raises:
        ValueError: if it is missing, holds something else, or is ambiguous.
    """
    option, fits = ("data.image_column", _is_image) if image else ("data.label_column", label_kind)
    columns = [field.name for field in shard.schema]
    if requested is not None and requested not in columns:
        error = ValueError(f"{shard.where} has no column {requested!r} ({option}): it has {', '.join(columns)}")
        raise with_parameters(error, option)
    fitting = [field.name for field in shard.schema if fits(field.type)]
    if not fitting:  # the error says what the column with the usual name holds
        requested = next((name for name in usual if name in columns), requested)
    if requested is not None:
        if requested not in fitting:
            kind = shard.schema.field(requested).type
            what = "image bytes" if image else "integers, strings, categories or booleans"
            error = ValueError(f"{shard.where}: column {requested!r} ({option}) holds {kind}, not {what}")
            raise with_parameters(error, option)
        return requested
    known = [name for name in usual if name in fitting]
    if known or len(fitting) == 1:
        return (known or fitting)[0]
    what = "images" if image else "labels"
    error = ValueError(f"{shard.where}: which column holds the {what}? Say {option}, one of {', '.join(columns)}")
    raise with_parameters(error, option)


def images(shard: Shard, column: str) -> Iterator[Encoded]:
    """The encoded images of a shard, in order. A path beside the bytes is never followed."""
    row = 0
    for batch in shard.batches(column):
        stored = batch.field("bytes") if hasattr(batch, "field") else batch
        for value in stored.to_pylist():
            yield Encoded(value or b"", f"{shard.where}, row {row}")
            row += 1


class Columns(NamedTuple):
    """Where images and labels are (None: by their usual names), how images are cropped, how many classes there are."""

    image: str | None = None
    label: str | None = None
    shape: Resizing = Resizing(None, None, "bilinear")
    classes: int | None = None


def fill_from(
    name: str,
    parts: dict[str, list[Shard]],
    columns: Columns,
    size: Fit | int | None,
    progress: Progress,
    skip: bool | None = None,
) -> Fill:
    """What `cached` needs to decode these shards. `size` None: it is guessed from the first images.

    `skip` as of `offramp.data._decode.each_image`.
    """

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        shards = [shard for group in parts.values() for shard in group]
        image, label = columns_of(shards, columns)
        labels, classes, notes = read_labels(shards, label, columns.classes)
        fit = size if isinstance(size, Fit) else fit_of(shards, image, size, columns.shape)
        pixels = allocate(len(labels), 3, fit.size, fit.size)
        stream = (item for shard in shards for item in images(shard, image))
        looked = decode_into(pixels, stream, fit, name=name, progress=progress, skip=skip)
        facts = {"parts": counts_of(parts), "classes": list(classes), "notes": notes, **facts_of(looked)}
        if skip is None:
            facts["notes"] = [*notes, *image_notes(name, looked.remarks)]
        return labels, {**facts, "fit": list(fit)}

    return fill


def counts_of(parts: dict[str, list[Shard]]) -> dict[str, int]:
    """How many rows each part has."""
    return {split: sum(shard.rows for shard in group) for split, group in parts.items()}


def columns_of(shards: Sequence[Shard], columns: Columns) -> tuple[str, str]:
    """Names of the image and the label column, which every shard must have.

    Raises:
        ValueError: if they are ambiguous, missing from a shard, or of another type.
    """
    image = choose_column(shards[0], columns.image, ("image", "img"), image=True)
    label = choose_column(shards[0], columns.label, ("label", "labels", "class", "target"), image=False)
    for shard in shards[1:]:
        for column, fits, what in ((image, _is_image, "image bytes"), (label, label_kind, "labels")):
            names = [field.name for field in shard.schema]
            if column not in names:
                differs = f"it has no column {column!r}, but {', '.join(names)}"
            elif not fits(shard.schema.field(column).type):
                differs = f"its column {column!r} holds {shard.schema.field(column).type}, not {what}"
            else:
                continue
            raise ValueError(f"{shard.where} has another schema than {shards[0].where}: {differs}; store them alike")
    return image, label


def tabular(
    request: Request, parts: dict[str, list[Shard]], files: list[tuple[str, Path]], columns: Columns
) -> RawDataSet:
    """A data set of resized images from shards, all of them decoded: what `parquet` and `hub` have in common."""
    fill = fill_from(request.name, parts, columns, request.image_size, request.progress, request.skip_damaged)
    settings = {
        "form": "shards",
        "size": request.image_size,
        "columns": list(columns),
        "pillow": PIL.__version__,
        "parts": {split: len(group) for split, group in parts.items()},
        "skip": request.skip_damaged,
    }
    decoded = cached(request.name, files, settings, fill, request.cache_dir)
    facts = decoded.facts
    source = ArraySource(request.name, tuple(facts["classes"]), decoded.labels, decoded.pixels)
    return photographs(request, source, facts["parts"], Fit(*facts["fit"]), facts)


Access = Callable[[list[Shard], str], Encodings]
"""(shards, column) -> their images, any of which can be read at any time."""


def table(
    request: Request,
    parts: dict[str, list[Shard]],
    files: list[tuple[str, Path]],
    columns: Columns,
    access: Access,
    check: Check,
    decoder: Decoder,
) -> RawDataSet:
    """A data set from shards: decoded once, or streamed through `access`."""
    image, label = columns_of([shard for group in parts.values() for shard in group], columns)
    parts, notes = _without_unlabelled(request.name, parts, label)
    shards = [shard for group in parts.values() for shard in group]
    fit = fit_of(shards, image, request.image_size, columns.shape)
    streaming = streams(request, sum(shard.rows for shard in shards), fit)
    check_decoder(decoder, streaming)
    if not streaming:
        data = tabular(request, parts, files, columns)
        return dataclasses.replace(data, notes=(*notes, *data.notes))
    labels, classes, messages = read_labels(shards, label)
    encoded = access(shards, image)
    facts = checked(request, encoded, [file for _, file in files], check, f"table {image}")
    source = EncodedSource(request.name, classes, labels, encoded, fit, decoder)
    return photographs(request, source, counts_of(parts), fit, facts, (*notes, *messages))


def _without_unlabelled(
    name: str, parts: dict[str, list[Shard]], column: str
) -> tuple[dict[str, list[Shard]], tuple[str, ...]]:
    """The parts without a test part whose labels are all -1, as ImageNet has it on the Hub, and a note about it."""
    test = [shard for shard in parts.get("test", []) if shard.rows]
    values = (value for shard in test for batch in shard.batches(column) for value in batch.unique().to_pylist())
    if not test or "val" not in parts or any(value != -1 for value in values):
        return parts, ()
    left = {part: group for part, group in parts.items() if part != "test"}
    return left, (f"{name}: the test split has no labels (all are -1) and is not used; val is reported on",)


def fit_of(shards: Sequence[Shard], column: str, size: int | None, shape: Resizing) -> Fit:
    """How images are resized; their size, if it is not given, follows from the first ones."""
    return shape.fit(size or guess_size(_first(shards, column)))


def _first(shards: Sequence[Shard], column: str) -> list[bytes]:
    items = islice((item for shard in shards for item in images(shard, column)), SAMPLE)
    return [item.data for item in items if isinstance(item.data, bytes)]
