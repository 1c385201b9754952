"""Any Parquet file, or folder of shards, with a column of images and one of labels: parquet:PATH."""

from pathlib import Path

from offramp.data._decode import Interpolation, Shape
from offramp.data._shards import Columns, tabular
from offramp.data._tables import open_shard, shards_by_split
from offramp.data.splits import RawDataSet, Request


def build(
    request: Request,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
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

    Raises:
        FileNotFoundError: if there is no such file or folder, or no shard in it.
        ValueError: if a shard, a label or an image is bad, naming file and row.
    """
    if not request.path:
        raise ValueError("parquet needs a path: write parquet:PATH, a file or a folder of shards")
    if request.streaming:
        raise ValueError(f"{request.name} does not stream: only folder:PATH does")
    root = located(request)
    files = sorted(path for path in root.rglob("*.parquet") if path.is_file()) if root.is_dir() else [root]
    if not files:
        raise FileNotFoundError(f"{root} contains no *.parquet files: name the folder of the shards")
    split = shards_by_split(root, files)
    parts = {part: [open_shard(file) for file in group] for part, group in split.items()}
    base = root if root.is_dir() else root.parent
    listed = [(str(file.relative_to(base)), file) for group in split.values() for file in group]
    return tabular(request, parts, listed, Columns(image_column, label_column, Shape(resize, crop, interpolation)))


def located(request: Request) -> Path:
    """The path of `kind:PATH`: as it is, else within `--data-dir`.

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
