"""A data set of the Hugging Face Hub, hub:ID; needs the package `datasets` and network access."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from offramp.data._checked import Check
from offramp.data._decode import Interpolation, Resizing
from offramp.data._packed import ArrowImages, rows_of
from offramp.data._shards import Columns, table
from offramp.data._tables import ROWS, SPLIT_WORDS, Shard
from offramp.data.encoded import Decoder
from offramp.data.splits import RawDataSet, Request


class Tables(NamedTuple):
    """The splits of a data set by our names, each as one shard; files, Arrow tables by name of shard, and notes."""

    parts: dict[str, list[Shard]]
    files: list[tuple[str, Path]]
    arrow: dict[str, Any]
    notes: tuple[str, ...]


def shards_of(identity: str, config: str | None = None) -> Tables:
    """Every split of a data set on the Hub.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if the Hub has no such data set, or no split of it is known here.
    """
    if not identity:
        raise ValueError("hub needs the name of a data set: write hub:OWNER/NAME")
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hub:{identity} needs `datasets`: pip install 'offramp[hub]'") from error
    try:
        loaded = datasets.load_dataset(identity, config)
    except Exception as error:  # network, names, scripts: the library says it in many ways
        raise ValueError(f"hub:{identity} could not be loaded: {error}") from error
    return parts_of(f"hub:{identity}", loaded)


def parts_of(where: str, loaded: Mapping[str, Any]) -> Tables:
    """The same of a `datasets.DatasetDict`."""
    names: dict[str, str] = {}
    for name in loaded:
        split = SPLIT_WORDS.get(name.lower())
        if split and names.setdefault(split, name) != name:
            raise ValueError(f"{where} has the splits {names[split]} and {name}: only one of them can be used")
    if "train" not in names:
        raise ValueError(f"{where} has the splits {', '.join(loaded)}: a train split is needed")
    arrow = {f"{where} {split}": loaded[name] for split, name in names.items()}
    parts = {split: [shard_of(f"{where} {split}", loaded[name])] for split, name in names.items()}
    if len(parts) == 1:
        parts = {"all": parts["train"]}
    files = [Path(entry["filename"]) for table in arrow.values() for entry in table.cache_files]
    return Tables(parts, [(file.name, file) for file in files], arrow, _unused(where, loaded, [*names.values()]))


def _unused(where: str, loaded: Mapping[str, Any], used: Sequence[str]) -> tuple[str, ...]:
    """A note about splits whose names are none of ours."""
    others = [name for name in loaded if name not in used]
    if not others:
        return ()
    return (f"{where}: used are the splits {', '.join(used)}; not used, since unknown by name: {', '.join(others)}",)


def shard_of(where: str, table: Any) -> Shard:
    """A `datasets.Dataset` as Arrow: images stay encoded, without decoding by the library."""
    arrow = table.with_format("arrow")

    def batches(column: str) -> Iterator[Any]:
        for part in arrow.select_columns([column]).iter(batch_size=ROWS):
            yield part.column(0).combine_chunks()

    return Shard(where, len(table), table.features.arrow_schema, batches)


def images_of(tables: Mapping[str, Any], shards: list[Shard], column: str) -> ArrowImages:
    """The images of `datasets.Dataset`s, whose Arrow tables are mapped from disk and have no index of chosen rows."""
    return ArrowImages([tables[shard.where].data.column(column) for shard in shards if shard.rows], rows_of(shards))


def build(
    request: Request,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    check: Check = "full",
    decoder: Decoder = "pillow",
) -> RawDataSet:
    """Images and labels of a data set on the Hub, resized like those of `parquet`.

    Args:
        request: from `load`.
        image_column: name of the column; default: `image`, `img` or the only one that fits.
        label_column: name of the column; default: `label`, `labels`, `class`, `target` or the only one that fits.
        config: name of the configuration of the data set.
        resize: shorter side before the centre crop.
        crop: alternative to `resize`: size / resize, such as 0.875.
        interpolation: how images are resized, with antialiasing.
        check: with streaming: `full` decodes every image once, before the first training on these files; `headers`
            only looks at their beginnings.
        decoder: with streaming, what decodes random crops of JPEGs: `pillow`, or `turbo`, which is faster and differs
            by a few grey levels (extra `jpeg`). Evaluation and bundles always decode with Pillow.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if the data set cannot be had or used.
    """
    parts, files, tables, notes = shards_of(request.path, config)
    columns = Columns(image_column, label_column, Resizing(resize, crop, interpolation))
    data = table(request, parts, files, columns, partial(images_of, tables), check, decoder)
    return dataclasses.replace(data, notes=(*notes, *data.notes))
