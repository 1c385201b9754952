"""One image: the evaluation crop is torchvision's to the bit, and whatever viewers show is decoded."""

import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.images import (
    BAD_EXIF,
    WIDE,
    BadImage,
    Fit,
    decode,
    default_fit,
    open_image,
    resize_and_crop,
    to_mode,
    to_rgb,
)
from offramp.optional import vision

SIZES = [(40, 36), (36, 40), (500, 375), (375, 500), (333, 777), (224, 224), (256, 300), (31, 90), (33, 33), (1200, 64)]


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (32, 36), (224, 256), (224, 232), (29, 40)])
def test_the_evaluation_crop_is_that_of_torchvision(size: int, resize: int, interpolation: str) -> None:
    transforms = vision("torchvision.transforms")
    steps = [
        transforms.Resize(resize, transforms.InterpolationMode(interpolation), antialias=True),
        transforms.CenterCrop(size),
    ]
    for mode in ("RGB", "L"):
        for sides in SIZES:
            image = photo(*sides, mode)
            expected = np.asarray(transforms.Compose(steps)(image))
            result = np.asarray(resize_and_crop(image, Fit(size, resize, interpolation)))
            assert np.array_equal(result, expected), (sides, mode)


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for empty in (b"", tmp_path / "a.png"):
        with pytest.raises(BadImage, match="it is empty"):
            open_image(empty)


def test_a_very_long_image_takes_bounded_memory() -> None:
    image = Image.new("RGB", (2_000_000, 2), (9, 8, 7))
    result = np.asarray(resize_and_crop(image, Fit(224, 256)))
    assert result.shape == (224, 224, 3) and (result == (9, 8, 7)).all()


@pytest.mark.parametrize(
    ("options", "resize"), [({}, 256), ({"crop": 0.875}, 256), ({"crop": 0.95}, 235), ({"crop": 1.0}, 224)]
)
def test_the_crop_as_a_share(options: dict[str, float], resize: int) -> None:
    assert default_fit(224, **options).resize == resize


def test_two_ways_to_say_the_crop() -> None:
    with pytest.raises(ValueError, match=r"data.resize=256 and data.crop=0.9 both set the crop: give one"):
        default_fit(224, 256, crop=0.9)
    with pytest.raises(ValueError, match=r"data.crop must be a share from 0.01 to 1, got 87.5"):
        default_fit(224, crop=87.5)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_damaged_exif_block_is_told_and_the_image_read(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    photo(40, 36).save(file, exif=b"Exif\0\0" + bytes.fromhex("0008000201120003"))
    pixels, remarks = decode(file, lambda image: image)
    assert np.array_equal(pixels, np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
    assert remarks == (BAD_EXIF,)


def test_orientation_in_xmp_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    photo(40, 36).save(file)
    stored = np.asarray(Image.open(file))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/>'
    content = file.read_bytes()
    file.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + content[2:])
    assert np.array_equal(decode(file, lambda image: image)[0], np.rot90(stored, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif", "a.webp"):
        photo(40, 36).save(tmp_path / name, exif=exif, lossless=True)
        expected = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
        result = decode(tmp_path / name, lambda image: image)[0]
        assert np.array_equal(result, np.asarray(expected).transpose(2, 0, 1)), name


def test_tiff_with_32_bit_integers(tmp_path: Path) -> None:
    grey = np.asarray(photo(40, 36, "L")).astype(np.int32)
    for values, expected in ((grey, grey), (grey * 257, grey)):
        Image.fromarray(values).save(tmp_path / "a.tif")
        pixels, remarks = decode(tmp_path / "a.tif", lambda image: image, channels=1)
        assert np.array_equal(pixels[0], expected) and remarks == ("grey", WIDE)
    for values in (grey * 257 * 2, grey - 1000):
        Image.fromarray(values.astype(np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(BadImage, match=r"32-bit integer pixels outside 0..65535, whose range is unknown"):
            decode(tmp_path / "a.tif", lambda image: image)


def test_grey_images_for_a_grey_network_keep_their_values() -> None:
    """Other images are converted by way of RGB, which would give the same values."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(np.asarray(to_mode(image, 1)), np.asarray(to_rgb(image).convert("L")))
    assert to_mode(image, 3).mode == "RGB" and to_mode(image.convert("LA"), 1).mode == "L"
