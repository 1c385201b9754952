"""Random crops of JPEGs by libjpeg-turbo (package simplejpeg) and a vectorised resize, where Pillow would be slower.

A crop that is at least twice as large as the square it becomes is decoded at a half, quarter or eighth of the size,
which the discrete cosine transform gives for less than a whole one. Of others, rows below the crop are not decoded or,
if nvImageCodec is installed, nothing but the crop.
"""

import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from offramp.data import _jpeg_part
from offramp.images import INTERPOLATIONS, LIMIT, Fit, upright_as_stored

SCALES = (8, 4, 2)
VECTORISED = ("bilinear", "bicubic")
"""Ways to resize that torch has for uint8 images, with antialiasing."""
BASELINE, APP1, START_OF_SCAN = 0xC0, 0xE1, (0xDA, 0xD9)
"""Markers of a JPEG: a baseline frame, EXIF and XMP data, what ends the headers (ITU T.81, table B.1)."""
END, TRAILING = b"\xff\xd9", 64
"""The marker that ends an image, and in how many last bytes it is looked for: some programs write more behind it."""
_memory = threading.local()
"""Where a thread decodes; the next image overwrites it."""


class Jpeg(NamedTuple):
    """An encoded image, its size in pixels, and where its baseline frame header is; 0 if it is of another kind."""

    data: bytes
    height: int
    width: int
    frame: int


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
    if colours not in ("YCbCr", "Gray") or height * width > LIMIT:
        return None
    frame, metadata = _headers(data)
    return None if metadata and not upright_as_stored(data) else Jpeg(data, height, width, frame)


def _headers(data: bytes) -> tuple[int, bool]:
    """Where the frame header of a baseline JPEG begins, else 0; whether there are EXIF or XMP data (ITU T.81, B.1)."""
    place, frame, metadata = 2, 0, False
    while data[place : place + 1] == b"\xff" and data[place + 1] not in START_OF_SCAN:
        kind = data[place + 1]
        frame, metadata = place if kind == BASELINE else frame, metadata or kind == APP1
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return frame, metadata


def _down_to(jpeg: Jpeg, row: int) -> Jpeg:
    """The image without what is below a row, which is then not decoded; pixels above it stay the same.

    Its header says that it is less high, in whole blocks, with one more below the row: chrominance is interpolated.
    """
    data, frame = jpeg.data, jpeg.frame
    if not frame or _truncated(jpeg):
        return jpeg
    components = data[frame + 10 : frame + 10 + 3 * data[frame + 9]]
    block = 8 * max(component & 15 for component in components[::3])
    height = (row // block + 2) * block
    if height >= jpeg.height:
        return jpeg
    shorter = data[: frame + 5] + height.to_bytes(2) + data[frame + 7 :]
    return jpeg._replace(data=shorter, height=height)


def _truncated(jpeg: Jpeg) -> bool:
    """Whether an image ends early, which is an error even if the rows of a crop are there."""
    return END not in jpeg.data[-TRAILING:]


def _pixels(jpeg: Jpeg, whole: Jpeg, **options: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Decoded into the memory of this thread. What follows the last row of a shortened image is no error."""
    import simplejpeg

    size = 3 * whole.height * whole.width
    if len(getattr(_memory, "pixels", ())) < size:
        _memory.pixels = np.empty(size, np.uint8)
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        jpeg.data, "RGB", buffer=_memory.pixels, strict=jpeg is whole, **options
    )
    return pixels


def _part(
    jpeg: Jpeg, box: Sequence[int], size: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "H W 3"] | None:
    """The part (top, left, height, width) of an image, resized to (height, width); None if it cannot be decoded."""
    top, left, height, width = box
    scale = next((scale for scale in SCALES if height >= scale * size[0] and width >= scale * size[1]), 1)
    if scale == 1 and interpolation in VECTORISED and not _truncated(jpeg) and (parts := _jpeg_part.decoder()):
        part = parts.part(jpeg.data, box)
        return None if part is None else _resized(part, size, interpolation)
    shorter = _down_to(jpeg, top + height)
    least = {"min_height": shorter.height // scale, "min_width": shorter.width // scale, "min_factor": scale}
    try:
        pixels = _pixels(shorter, jpeg, **(least if scale > 1 else {}))
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
