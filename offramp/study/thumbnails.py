"""Images of a data set as small PNGs that a page carries within itself."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIDE = 96
"""The longest side that is kept; smaller images are kept as they are."""


def thumbnail(pixels: UInt8[np.ndarray, "_ H W"]) -> str:
    """An image (channels, height, width), 0..255, as a `data:` address of a PNG.

    Three channels are RGB; of any other number the first is shown, in grey.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]))
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
