"""WebDataset shards, plain tar files of images with their labels: tar:PATH, streamed in bounded memory."""

from offramp.data._checked import Check, checked, fit_of
from offramp.data._decode import Interpolation, Resizing
from offramp.data._photographs import check_decoder, photographs
from offramp.data._tables import shard_files, shards_by_split, split_notes
from offramp.data._tar_index import TarImages, labels_of, samples_of
from offramp.data.encoded import Decoder, EncodedSource
from offramp.data.parquet import located
from offramp.data.splits import RawDataSet, Request


def build(
    request: Request,
    *,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    check: Check = "full",
    decoder: Decoder = "pillow",
) -> RawDataSet:
    """Images and labels of tar shards; which split a shard belongs to, its name says (or its folder's).

    A sample is the members of one name: an image (jpg, png, …, as `folder` reads them) and its label (cls, or json with
    `label` or `cls`). Shards are indexed once; then each image is read from its place, so that order, splits and
    resumed runs are those of images in memory.

    Args:
        request: from `load`; `image_size` is the side of the square that images get.
        resize: shorter side before the centre crop; default 256/224 of the size, the size itself up to 64.
        crop: alternative to `resize`: size / resize, such as 0.875.
        interpolation: how images are resized, with antialiasing.
        check: `full` decodes every image once, before the first training on these files, so that no bad one stops a
            run; `headers` only looks at their beginnings.
        decoder: with streaming, what decodes random crops of JPEGs: `pillow`, or `turbo`, which is faster and differs
            by a few grey levels (extra `jpeg`). Evaluation and bundles always decode with Pillow.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no shard in it.
        ValueError: if a shard, a label or an image is bad, naming shard and sample.
    """
    if not request.path:
        raise ValueError("tar needs a path: write tar:PATH, a file or a folder of shards")
    root = located(request)
    files = shard_files(root, ".tar")
    split = shards_by_split(root, files)
    notes = split_notes(root, split)
    parts = {
        part: [samples_of(file, notes, skip=request.skip_damaged) for file in group] for part, group in split.items()
    }
    samples = [sample for group in parts.values() for shard in group for sample in shard]
    labels, classes = labels_of(root, samples)
    images = TarImages(samples, root if root.is_dir() else root.parent)
    fit = fit_of(images, request, Resizing(resize, crop, interpolation))
    facts = checked(request, images, files, check, "tar")
    counts = {part: sum(map(len, group)) for part, group in parts.items()}
    check_decoder(decoder, streaming=True)
    source = EncodedSource(request.name, classes, labels, images, fit, decoder)
    return photographs(request, source, counts, fit, facts, notes)
