"""One image file as square pixels: what training and bundles read images by. Runs without torch.

Images of a data set and images that a bundle is asked about go through the same functions, so that they are equal to
the last bit.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not EPS and the like, which start other programs
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
LIMIT = 64_000_000  # pixels of one image

GREY, ALPHA = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"), ("LA", "La", "RGBA", "RGBa")

Pixels = NDArray[np.uint8]
"""(channels, H, W), 0..255."""


class Fit(NamedTuple):
    """What shape images get: square of side `size`. `resize` is the shorter side before the centre is cropped.

    `resize` None: nothing is resized, an image of another size is an error.
    """

    size: int
    resize: int | None


class BadImage(Exception):
    """One image that cannot be used, and why."""


def default_fit(size: int, resize: int | None = None) -> Fit:
    """The usual: shorter side to 256/224 of the size (ImageNet's test protocol), to the size itself up to 64."""
    if resize is not None and resize < size:
        raise ValueError(f"images of {size} pixels need a --data.resize of at least that, got {resize}")
    return Fit(size, resize or (size if size <= 64 else round(size * 256 / 224)))


def open_image(data: bytes | Path) -> Image.Image:
    """Read the header only.

    Raises:
        BadImage: if it is no image of `FORMATS`, or larger than `LIMIT` pixels (an image bomb).
    """
    if isinstance(data, bytes) and not data:
        raise BadImage("there are no image bytes")
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"an image bomb? it has more than the {LIMIT // 10**6} megapixels allowed") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"no {', '.join(FORMATS)} image") from error
    except Exception as error:  # parsers fail in many ways; every one of them is a bad image
        raise BadImage(_reason(error)) from error
    if image.width * image.height > LIMIT:
        image.close()
        raise BadImage(
            f"an image bomb? it is {image.width}x{image.height}, more than the {LIMIT // 10**6} megapixels allowed"
        )
    return image


def _reason(error: Exception) -> str:
    said = "".join(str(error).splitlines()[:1])
    # what decoders mean to say comes in these; the rest are accidents, told best by their kind
    return said if said and isinstance(error, OSError | SyntaxError | ValueError) else f"{type(error).__name__}: {said}"


def kind_of(mode: str) -> str | None:
    """How an image that is not RGB is counted: grey, palette, CMYK, transparent or other."""
    if mode in GREY:
        return "grey"
    if mode in ALPHA:
        return "transparent"
    return {"RGB": None, "P": "palette", "PA": "palette", "CMYK": "CMYK"}.get(mode, "other")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; 16-bit grey is scaled, transparency is dropped."""
    if image.mode == "F":
        raise BadImage("it has floating-point pixels, whose range is unknown: store it with 8 bits")
    if image.mode.startswith("I"):
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def centre(image: Image.Image, fit: Fit) -> Image.Image:
    """Shorter side to `fit.resize`, then the centre square of `fit.size`, in one antialiased bilinear step."""
    if fit.resize is None:
        if image.size != (fit.size, fit.size):
            raise BadImage(f"it is {image.width}x{image.height}, not {fit.size}x{fit.size}")
        return image
    side = min(image.size) * fit.size / fit.resize
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((fit.size, fit.size), Image.Resampling.BILINEAR, box=box)


def decode(
    data: bytes | Path, finish: Callable[[Image.Image], Image.Image], channels: int = 3
) -> tuple[Pixels, str | None]:
    """One image (channels, H, W), upright, in RGB or grey, as `finish` cuts it, and what it was counted as.

    Args:
        channels: 3 for RGB, 1 for grey.

    Raises:
        BadImage: whatever is wrong with it.
    """
    with open_image(data) as image:
        kind = kind_of(image.mode)
        try:
            image.load()
            if image.format == "TIFF" or "exif" in image.info:
                ImageOps.exif_transpose(image, in_place=True)
            upright = to_rgb(image)
            pixels = np.asarray(finish(upright if channels == 3 else upright.convert("L")))
        except BadImage:
            raise
        except Exception as error:  # see open_image
            raise BadImage(_reason(error)) from error
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None], kind
