"""Image files in folders: folder:PATH with PATH/{train,val,test}/CLASS/… or PATH/CLASS/…, in memory or streaming."""

from typing import Any

import numpy as np
import PIL

from offramp.data._cache import Allocate, cached
from offramp.data._checked import Check, checked, encodings, fit_of
from offramp.data._class_folders import Layout, Listing, scan
from offramp.data._decode import Interpolation, Resizing, decode_into
from offramp.data._photographs import check_decoder, facts_of, photographs, streams
from offramp.data.encoded import Decoder, EncodedSource, ImageFiles
from offramp.data.parquet import located
from offramp.data.splits import ArraySource, RawDataSet, Request
from offramp.images import Fit


def build(
    request: Request,
    *,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    layout: Layout = "auto",
    check: Check = "full",
    decoder: Decoder = "pillow",
) -> RawDataSet:
    """Images in one folder per class, in train/, val/ and test/ or undivided (then a seeded 80/10/10 split).

    Args:
        request: from `load`; `image_size` is the side of the square that images get.
        resize: shorter side before the centre crop; default 256/224 of the size, the size itself up to 64.
        crop: alternative to `resize`: size / resize, such as 0.875.
        interpolation: how images are resized, with antialiasing.
        layout: `auto`: folders named train, val and test are splits; `classes`: every folder is a class.
        check: with streaming: `full` decodes every image once, before the first training on these files, so that
            no bad one stops a run; `headers` only looks at their beginnings.
        decoder: with streaming, what decodes random crops of JPEGs: `pillow`, or `turbo`, which is faster and differs
            by a few grey levels (extra `jpeg`). Evaluation and bundles always decode with Pillow.

    Raises:
        FileNotFoundError: if the folder is missing or empty.
        ValueError: if its layout or an image is bad, naming the file.
    """
    if not request.path:
        raise ValueError("folder needs a path: write folder:PATH")
    listing, shape = scan(located(request), layout), Resizing(resize, crop, interpolation)
    images, fit = ImageFiles(listing.files), fit_of(ImageFiles(listing.files), request, shape)
    streaming = streams(request, len(images), fit)
    check_decoder(decoder, streaming)
    if streaming:
        source = EncodedSource(request.name, listing.classes, listing.labels, images, fit, decoder)
        facts = checked(request, images, listing.files, check, "folder")
        return photographs(request, source, listing.counts, fit, facts, listing.notes)
    resident, facts = _resident(request, listing, shape, fit)
    return photographs(request, resident, listing.counts, Fit(*facts["fit"]), facts, listing.notes)


def _resident(request: Request, listing: Listing, shape: Resizing, fit: Fit) -> tuple[ArraySource, dict[str, Any]]:
    """All images decoded, or from the cache, and the facts about them."""

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        images = ImageFiles(listing.files)
        pixels = allocate(len(images), 3, fit.size, fit.size)
        looked = decode_into(
            pixels,
            encodings(images),
            fit,
            name=request.name,
            progress=request.progress,
            skip=request.skip_damaged,
        )
        return listing.labels, {**facts_of(looked), "fit": list(fit)}

    files = [(str(file.relative_to(listing.root)), file) for file in listing.files]
    settings = {
        "form": "folder",
        "size": request.image_size,
        "shape": list(shape),
        "classes": list(listing.classes),
        "pillow": PIL.__version__,
        "skip": request.skip_damaged,
    }
    decoded = cached(request.name, files, settings, fill, request.cache_dir)
    source = ArraySource(request.name, listing.classes, listing.labels, decoded.pixels, files=listing.files)
    return source, decoded.facts
