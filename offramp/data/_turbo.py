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
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from offramp.data import _jpeg_part
from offramp.data.augment import boxes
from offramp.images import INTERPOLATIONS, LIMIT, Fit, upright_as_stored

SCALES = (8, 4, 2)
VECTORISED = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
"""How torch resizes uint8 images with antialiasing: as `torch.nn.functional.interpolate`, but to given memory."""
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
    encoded: Sequence[bytes | Path], draws: Float[Any, "B 10 4"], fit: Fit, out: UInt8[np.ndarray, "B 3 H W"]
) -> Iterator[bool]:
    """Write a random part of each JPEG, resized, see `offramp.data.augment.boxes`; False for what is left to Pillow."""
    jpegs = [opened(data) for data in encoded]
    sides = torch.tensor([(jpeg.height, jpeg.width) if jpeg else (1, 1) for jpeg in jpegs]).reshape(-1, 2)
    places = boxes(draws, sides[:, 0], sides[:, 1]).long().tolist()
    for jpeg, box, image in zip(jpegs, places, torch.from_numpy(out), strict=True):
        yield jpeg is not None and _part(jpeg, box, fit.interpolation, image)


def windows(
    encoded: Sequence[bytes | Path], draws: Float[Any, "B 2"], fit: Fit, out: UInt8[np.ndarray, "B 3 H W"]
) -> Iterator[bool]:
    """Write a random square of each JPEG once its shorter side is resized; False for what is left to Pillow."""
    resize = fit.resize or fit.size
    for jpeg, (down, right), image in zip(map(opened, encoded), draws.tolist(), torch.from_numpy(out), strict=True):
        if jpeg is None:
            yield False
            continue
        sides, short = (jpeg.height, jpeg.width), min(jpeg.height, jpeg.width)
        height, width = (resize if side == short else int(resize * side / short) for side in sides)
        if height * width > LIMIT:
            yield False
            continue
        whole = torch.empty((height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
        top, left = int(down * (height - fit.size + 1)), int(right * (width - fit.size + 1))
        done = _part(jpeg, [0, 0, *sides], fit.interpolation, whole)
        if done:
            image.copy_(whole[:, top : top + fit.size, left : left + fit.size])
        yield done


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


def _part(jpeg: Jpeg, box: Sequence[int], interpolation: str, out: UInt8[Tensor, "3 H W"]) -> bool:
    """Write the part (top, left, height, width) of an image, resized; False if it cannot be decoded."""
    top, left, height, width = box
    size = out.shape[1:]
    scale = next((scale for scale in SCALES if height >= scale * size[0] and width >= scale * size[1]), 1)
    if scale == 1 and interpolation in VECTORISED and not _truncated(jpeg) and (parts := _jpeg_part.decoder()):
        part = parts.part(jpeg.data, box)
        if part is not None:
            _resize(part, interpolation, out)
        return part is not None
    shorter = _down_to(jpeg, top + height)
    least = {"min_height": shorter.height // scale, "min_width": shorter.width // scale, "min_factor": scale}
    try:
        pixels = _pixels(shorter, jpeg, **(least if scale > 1 else {}))
    except ValueError:
        return False
    if scale == 1 and interpolation in VECTORISED:
        _resize(pixels[top : top + height, left : left + width], interpolation, out)
        return True
    place = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    resized = Image.fromarray(pixels).resize((size[1], size[0]), INTERPOLATIONS[interpolation], box=place)
    out.copy_(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    return True


def _resize(part: UInt8[np.ndarray, "_ _ 3"], interpolation: str, out: UInt8[Tensor, "3 H W"]) -> None:
    """Write a part resized with antialiasing: as by Pillow to a few grey levels, in less than half of the time.

    The dimension of the batch is added first: with it, strides are those of channels_last, which torch resizes without
    moving the channels.
    """
    image = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
    VECTORISED[interpolation](image, out.shape[1:], False, None, None, out=out[None])
