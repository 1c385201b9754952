"""Random crops of JPEGs by libjpeg-turbo (package simplejpeg) and a vectorised resize, where Pillow would be slower.

A crop that is at least twice as large as the square it becomes is decoded at a half, quarter or eighth of the size,
which the discrete cosine transform gives for less than a whole one.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from offramp.images import INTERPOLATIONS, LIMIT, Fit, upright_as_stored

SCALES = (8, 4, 2)
VECTORISED = ("bilinear", "bicubic")
"""Ways to resize that torch has for uint8 images, with antialiasing."""
BEGINNING = 1 << 16
"""Bytes in which EXIF and XMP data begin, if there are any."""


class Jpeg(NamedTuple):
    """An encoded image and its size in pixels."""

    data: bytes
    height: int
    width: int


def require() -> None:
    """Check that the package is there.

    Raises:
        ImportError: naming the extra that installs it.
    """
    if find_spec("simplejpeg") is None:
        raise ImportError("data.decoder=turbo needs `simplejpeg`: pip install 'offramp[jpeg]'")


def crops(
    encoded: Sequence[bytes | Path], draws: Float[Any, "B 10 4"], fit: Fit
) -> Iterator[UInt8[np.ndarray, "H W 3"] | None]:
    """A random part of each JPEG, resized, see `offramp.data.augment.boxes`; None for what is left to Pillow."""
    import torch

    from offramp.data.augment import boxes

    jpegs = [opened(data) for data in encoded]
    sides = torch.tensor([(jpeg.height, jpeg.width) if jpeg else (1, 1) for jpeg in jpegs]).reshape(-1, 2)
    for jpeg, box in zip(jpegs, boxes(draws, sides[:, 0], sides[:, 1]).long().tolist(), strict=True):
        yield jpeg and _part(jpeg, box, (fit.size, fit.size), fit.interpolation)


def windows(
    encoded: Sequence[bytes | Path], draws: Float[Any, "B 2"], fit: Fit
) -> Iterator[UInt8[np.ndarray, "H W 3"] | None]:
    """A random square of each JPEG once its shorter side is resized; None for what is left to Pillow."""
    resize = fit.resize or fit.size
    for jpeg, (down, right) in zip(map(opened, encoded), draws.tolist(), strict=True):
        if jpeg is None:
            yield None
            continue
        sides, short = (jpeg.height, jpeg.width), min(jpeg.height, jpeg.width)
        height, width = (resize if side == short else int(resize * side / short) for side in sides)
        whole = _part(jpeg, [0, 0, *sides], (height, width), fit.interpolation) if height * width <= LIMIT else None
        top, left = int(down * (height - fit.size + 1)), int(right * (width - fit.size + 1))
        yield None if whole is None else whole[top : top + fit.size, left : left + fit.size]


def opened(encoded: bytes | Path) -> Jpeg | None:
    """An image if it is a JPEG of a usual kind, not too large and stored upright; else None."""
    import simplejpeg

    data = encoded.read_bytes() if isinstance(encoded, Path) else encoded
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    beginning = data[:BEGINNING]
    if colours not in ("YCbCr", "Gray") or height * width > LIMIT:
        return None
    if (b"Exif\0" in beginning or b"http://ns.adobe.com/xap/" in beginning) and not upright_as_stored(data):
        return None
    return Jpeg(data, height, width)


def _part(
    jpeg: Jpeg, box: Sequence[int], size: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "H W 3"] | None:
    """The part (top, left, height, width) of an image, resized to (height, width); None if it cannot be decoded."""
    import simplejpeg

    top, left, height, width = box
    scale = next((scale for scale in SCALES if height >= scale * size[0] and width >= scale * size[1]), 1)
    least = {"min_height": jpeg.height // scale, "min_width": jpeg.width // scale, "min_factor": scale}
    try:
        pixels = simplejpeg.decode_jpeg(jpeg.data, "RGB", **(least if scale > 1 else {}))
    except ValueError:
        return None
    if scale == 1 and interpolation in VECTORISED:
        return _resized(pixels[top : top + height, left : left + width], size, interpolation)
    place = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], INTERPOLATIONS[interpolation], box=place))


def _resized(part: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int], interpolation: str) -> UInt8[np.ndarray, "_ _ 3"]:
    """Resized with antialiasing: as by Pillow to a few grey levels, in less than half of the time.

    The dimension of the batch is added first: with it, strides are those of channels_last, which torch resizes without
    moving the channels.
    """
    import torch
    from torch.nn.functional import interpolate

    image = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
    resized = interpolate(image, size, mode=interpolation, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()
