"""Any Parquet file, or folder of shards, with a column of images and one of labels: parquet:PATH."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from offramp.data._checked import Check
from offramp.data._decode import Interpolation, Resizing
from offramp.data._packed import packed
from offramp.data._shards import Columns, images, table
from offramp.data._tables import Shard, open_shard, shard_files, shards_by_split, split_notes
from offramp.data.encoded import Decoder, Encodings
from offramp.data.splits import RawDataSet, Request
from offramp.lookup import with_parameters


def build(
    request: Request,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    check: Check = "full",
    decoder: Decoder = "pillow",
) -> RawDataSet:
    """Images and labels of Parquet shards; which split a shard belongs to, its name says (or its folder's).

    Args:
        request: from `load`; `image_size` is the side of the square that images get.
        image_column: encoded bytes, plain or as the Hub stores them; default: `image`, `img` or the only one that fits.
        label_column: integers, strings, categories or booleans; default: `label`, `labels`, `class`, `target` or the
            only one that fits.
        resize: shorter side before the centre crop; default 256/224 of the size, the size itself up to 64.
        crop: alternative to `resize`: size / resize, such as 0.875.
        interpolation: how images are resized, with antialiasing.
        check: with streaming: `full` decodes every image once, before the first training on these files, so that no
            bad one stops a run; `headers` only looks at their beginnings.
        decoder: with streaming, what decodes random crops of JPEGs: `pillow`, or `turbo`, which is faster and differs
            by a few grey levels (extra `jpeg`). Evaluation and bundles always decode with Pillow.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no shard in it.
        ValueError: if a shard, a label or an image is bad, naming file and row.
    """
    if not request.path:
        raise ValueError("parquet needs a path: write parquet:PATH, a file or a folder of shards")
    root = located(request)
    split = shards_by_split(root, shard_files(root, ".parquet"))
    notes = split_notes(root, split)
    opened = {part: _opened(group, notes, skip=request.skip_damaged) for part, group in split.items()}
    parts = {part: [shard for _, shard in group] for part, group in opened.items()}
    if not any(parts.values()):
        raise ValueError(f"{root}: no shard has rows that could be read")
    base = root if root.is_dir() else root.parent
    listed = [(str(file.relative_to(base)), file) for group in opened.values() for file, _ in group]
    columns = Columns(image_column, label_column, Resizing(resize, crop, interpolation))

    def access(shards: list[Shard], column: str) -> Encodings:
        return packed(request, shards, column, [file for _, file in listed], lambda shard: images(shard, column))

    data = table(request, parts, listed, columns, access, check, decoder)
    return dataclasses.replace(data, notes=(*notes, *data.notes))


def _opened(files: Sequence[Path], notes: list[str], *, skip: bool) -> list[tuple[Path, Shard]]:
    """Files as shards; `notes` takes a line for each that has no rows or, with `skip`, is no whole Parquet file."""
    shards = []
    for file in files:
        try:
            shard = open_shard(file, skip=skip)
        except ValueError as error:
            if not skip:
                raise with_parameters(
                    ValueError(f"{error}, or leave it out by skip_damaged"), "skip_damaged"
                ) from error
            notes.append(f"{file} was left out, all of it: it is not a whole Parquet file")
            continue
        if shard.rows:
            shards.append((file, shard))
        else:
            notes.append(f"{file} is empty")
    return shards


def located(request: Request) -> Path:
    """The path of `kind:PATH`: as it is, else within `data_dir`.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    path = Path(request.path).expanduser()
    places = [path]
    if request.data_dir and not path.is_absolute():
        places.append(Path(request.data_dir).expanduser() / path)
    for place in places:
        if place.exists():
            return place
    if len(places) == 1:
        raise FileNotFoundError(f"{path} does not exist: check {request.name}")
    raise FileNotFoundError(f"neither {places[0]} nor {places[1]} exists: correct {request.name}")
