"""A data set of the Hugging Face Hub, hub:ID, where `datasets` is installed; the only source that uses the network."""

from collections.abc import Iterator
from typing import Any

from offramp.data._cache import cached
from offramp.data._shards import ROWS, SPLIT_WORDS, Shard, fill_from
from offramp.data.splits import ArraySource, Found, Request, consecutive


def shards_of(identity: str, config: str | None = None) -> dict[str, list[Shard]]:
    """Every split of a data set on the Hub as one shard, by our names of the splits.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if the Hub has no such data set, or no split of it is known here.
    """
    if not identity:
        raise ValueError("which data set of the Hub? Write hub:OWNER/NAME")
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hub:{identity} needs `datasets`: pip install 'offramp[hub]'") from error
    try:
        loaded = datasets.load_dataset(identity, config)
    except Exception as error:  # network, names, scripts: the library says it in many ways
        raise ValueError(f"hub:{identity} could not be loaded: {error}") from error
    parts: dict[str, list[Shard]] = {}
    for name in loaded:
        if name in SPLIT_WORDS:
            parts.setdefault(SPLIT_WORDS[name], []).append(shard_of(f"hub:{identity} {name}", loaded[name]))
    if not parts:
        raise ValueError(f"hub:{identity} has only {', '.join(loaded)}: train, validation or test are needed")
    order = ("train", "val", "test")
    return {"all": parts["train"]} if set(parts) == {"train"} else {part: parts[part] for part in order if part in parts}


def shard_of(where: str, table: Any) -> Shard:
    """A `datasets.Dataset` as Arrow: images stay encoded, whatever the library would make of them."""
    arrow = table.with_format("arrow")

    def batches(column: str) -> Iterator[Any]:
        for part in arrow.select_columns([column]).iter(batch_size=ROWS):
            yield part.column(0).combine_chunks()

    return Shard(where, len(table), table.features.arrow_schema, batches)


def build(
    request: Request,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    resize: int | None = None,
) -> Found:
    """Images and labels of a data set on the Hub, resized like those of `parquet`.

    Args:
        request: from `load`.
        image_column: default: `image`, `img` or the only one that fits.
        label_column: default: `label`, `labels`, `class`, `target` or the only one that fits.
        config: which configuration of the data set.
        resize: shorter side before the centre crop.
    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if the data set cannot be had or used.
    """
    if request.streaming:
        raise ValueError(f"{request.name} does not stream: only folder:PATH does")
    parts = shards_of(request.path, config)
    fill = fill_from(
        request.name,
        parts,
        image_column=image_column,
        label_column=label_column,
        fit=request.image_size,
        resize=resize,
        progress=request.progress,
    )
    return tabular(request, [], _versions(parts) | {"config": config, "resize": resize}, fill, (image_column, label_column))


def _versions(parts: dict[str, list[Shard]]) -> dict[str, Any]:
    return {split: [[shard.where, shard.rows, str(shard.schema)] for shard in shards] for split, shards in parts.items()}
