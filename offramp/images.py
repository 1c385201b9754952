"""Reads one image file into square pixels, for training and for bundles. Runs without torch.

Both use the same functions, so that an image has the same pixels, bit for bit, in evaluation and in a bundle.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from offramp.lookup import ParameterError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not EPS and the like, which start other programs
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
LIMIT = 64_000_000  # pixels of one image

GREY, ALPHA = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"), ("LA", "La", "RGBA", "RGBa")

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Ways to resize, by the names that timm and torchvision use; all but `nearest` are antialiased."""

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

BAD_EXIF, WIDE = "damaged EXIF", "32-bit integer"

Pixels = NDArray[np.uint8]
"""(channels, H, W), 0..255."""


class Fit(NamedTuple):
    """The square that images are fitted to.

    Attributes:
        size: Side of the square in pixels.
        resize: Length of the shorter side before the centre is cropped, in pixels. None: images must have the right
            size already.
        interpolation: One of `INTERPOLATIONS`.
    """

    size: int
    resize: int | None
    interpolation: str = "bilinear"


class BadImage(Exception):
    """One image that cannot be used, and why."""


def default_fit(
    size: int, resize: int | None = None, *, crop: float | None = None, interpolation: str = "bilinear"
) -> Fit:
    """Returns the fit for images of side `size`.

    Args:
        resize: Length of the shorter side before the crop. Default: 256/224 of the size (the test protocol of
            ImageNet), the size itself up to 64.
        crop: The same as a share, size / resize, as in the configurations of timm.
        interpolation: One of `INTERPOLATIONS`.

    Raises:
        ValueError: if the crop is larger than the resized image, or both `resize` and `crop` are given.
    """
    if resize is not None and crop is not None:
        raise ParameterError(
            f"data.resize={resize} and data.crop={crop} both set the crop: give one", "data.resize", "data.crop"
        )
    if resize is not None and resize < size:
        raise ParameterError(
            f"images of {size} pixels need a data.resize of at least that, got {resize}", "data.resize"
        )
    if crop is not None:
        if not 0.01 <= crop <= 1:
            raise ParameterError(f"data.crop must be a share from 0.01 to 1, got {crop}", "data.crop")
        resize = int(size / crop)
    return Fit(size, resize or (size if size <= 64 else round(size * 256 / 224)), interpolation)


def open_image(data: bytes | Path) -> Image.Image:
    """Read the header only.

    Raises:
        BadImage: if it is no image of `FORMATS`, or larger than `LIMIT` pixels (an image bomb).
    """
    if isinstance(data, bytes) and not data:
        raise BadImage("it is empty")
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"it has more than the {LIMIT // 10**6} megapixels allowed") from error
    except UnidentifiedImageError as error:
        empty = isinstance(data, Path) and not data.stat().st_size
        raise BadImage("it is empty" if empty else f"no {', '.join(FORMATS)} image") from error
    except Exception as error:  # parsers fail in many ways; every one of them is a bad image
        raise BadImage(_reason(error)) from error
    if image.width * image.height > LIMIT:
        image.close()
        raise BadImage(f"it is {image.width}x{image.height}, more than the {LIMIT // 10**6} megapixels allowed")
    return image


def _reason(error: Exception) -> str:
    reason = "".join(str(error).splitlines()[:1])
    # decoders explain themselves in these types; for the others, the type says most
    return (
        reason
        if reason and isinstance(error, OSError | SyntaxError | ValueError)
        else f"{type(error).__name__}: {reason}"
    )


def kind_of(mode: str) -> str | None:
    """How an image that is not RGB is counted: grey, palette, CMYK, transparent or other."""
    if mode in GREY:
        return "grey"
    if mode in ALPHA:
        return "transparent"
    return {"RGB": None, "P": "palette", "PA": "palette", "CMYK": "CMYK"}.get(mode, "other")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB: 16-bit grey is scaled, transparency is dropped.

    Raises:
        BadImage: if the range of the pixel values is unknown.
    """
    if image.mode == "F":
        raise BadImage("it has floating-point pixels, whose range is unknown: store it with 8 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image).astype(np.int64), wide=_is_wide(image)))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Converts any mode to RGB (3 channels) or grey (1 channel), see `to_rgb`; grey images stay as they are then."""
    if channels == 3:
        return to_rgb(image)
    return image if image.mode == "L" else to_rgb(image).convert("L")


def _is_wide(image: Image.Image) -> bool:
    """Whether pixels are 32-bit integers as only TIFF has them; other formats of this mode have 16 bits."""
    return image.mode == "I" and image.format == "TIFF"


def _eight_bits(values: NDArray[np.int64], wide: bool) -> Pixels:
    """Grey values in 0..255. Those of 32 bits do not say their range: up to 255 they are 8 bits, above 16 bits."""
    if wide and (values.min() < 0 or values.max() > 65535):
        raise BadImage("it has 32-bit integer pixels outside 0..65535, whose range is unknown: store it with 8 bits")
    if not (wide and values.max() <= 255):
        values = values >> 8
    return values.clip(0, 255).astype(np.uint8)


def resize_and_crop(image: Image.Image, fit: Fit) -> Image.Image:
    """Resizes the shorter side to `fit.resize`, then crops the centre square of `fit.size`.

    Bit for bit torchvision's `Resize(fit.resize, antialias=True)` and `CenterCrop(fit.size)` on PIL images.
    """
    if fit.resize is None:
        if image.size != (fit.size, fit.size):
            raise BadImage(f"it is {image.width}x{image.height}, not {fit.size}x{fit.size}")
        return image
    image = resize_shorter_side(image, fit.resize, fit.interpolation)
    if image.size == (fit.size, fit.size):
        return image
    left, top = round((image.width - fit.size) / 2), round((image.height - fit.size) / 2)
    return image.crop((left, top, left + fit.size, top + fit.size))


def resize_shorter_side(image: Image.Image, length: int, interpolation: str) -> Image.Image:
    """Resizes an image so that its shorter side has this length, as torchvision's `Resize` does.

    An image so long that the result would exceed `LIMIT` pixels is first cropped to the middle of its long side.
    """
    short = min(image.size)
    if int(length * max(image.size) / short) * length > LIMIT:
        width, height = min(image.width, 3 * short), min(image.height, 3 * short)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    # the order of the operations decides the rounding
    width, height = (length if side == short else int(length * side / short) for side in image.size)
    size = (width, height)
    return image if size == image.size else image.resize(size, INTERPOLATIONS[interpolation])


def _turn(image: Image.Image) -> tuple[Image.Transpose | None, bool]:
    """How an image is turned upright by its EXIF or XMP orientation; False: they are damaged, it stays as stored."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1)), True
    except Exception:  # the parser fails in many ways; programs that show images ignore all of them
        return None, False


def upright_as_stored(data: bytes) -> bool:
    """Whether an image needs no turning, by its EXIF and XMP data; False also if they are damaged."""
    try:
        with open_image(data) as image:
            return _turn(image) == (None, True)
    except Exception:  # see open_image
        return False


def decode(
    data: bytes | Path | Image.Image, finish: Callable[[Image.Image], Image.Image], channels: int = 3
) -> tuple[Pixels, tuple[str, ...]]:
    """Decodes one image.

    Args:
        data: The encoded bytes, the file, or what `open_image` returned, which is closed.
        finish: Resizes and crops the upright image.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The pixels (channels, H, W), and what is remarkable about the image: the kind that it was converted from (see
        `kind_of`), `BAD_EXIF`, `WIDE`.

    Raises:
        BadImage: if it cannot be decoded, with the reason.
    """
    with data if isinstance(data, Image.Image) else open_image(data) as image:
        remarks = [kind_of(image.mode), WIDE if _is_wide(image) else None]
        try:
            image.load()
            turn, whole = _turn(image)
            remarks.append(None if whole else BAD_EXIF)
            converted = to_mode(image, channels)
            picture = np.asarray(finish(converted if turn is None else converted.transpose(turn)))
        except BadImage:
            raise
        except Exception as error:  # see open_image
            raise BadImage(_reason(error)) from error
    pixels = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture[None]
    return pixels, tuple(remark for remark in remarks if remark)
