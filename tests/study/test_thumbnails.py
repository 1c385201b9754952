"""Thumbnails: PNGs that hold the same pixels, made smaller only where they are large."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from offramp.study.thumbnails import SIDE, thumbnail


def opened(address: str) -> Image.Image:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (5, "L")])
def test_small_images_are_kept_to_the_bit(channels: int, mode: str) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (channels, 8, 6)).astype(np.uint8)
    result = opened(thumbnail(pixels))
    assert result.mode == mode and result.size == (6, 8)
    wanted = pixels.transpose(1, 2, 0) if channels == 3 else pixels[0]
    assert np.array_equal(np.asarray(result), wanted)


def test_large_images_are_made_small_in_their_shape() -> None:
    assert opened(thumbnail(np.zeros((3, 200, 400), np.uint8))).size == (SIDE, SIDE // 2)
