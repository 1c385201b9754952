"""A bundle prepares image files exactly as training's evaluation does: the same bytes, the same bits."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.bundle.preprocess import Preprocessing
from offramp.bundle.write import preprocessing_of
from offramp.data.augment import normalise
from offramp.data.load import load
from offramp.images import BadImage


def assert_equal_bits(preprocessing: Preprocessing, data: Any, files: list[Path], ids: Any) -> None:
    wanted = data.splits["test"].source.batch(ids)
    result = np.stack([preprocessing.read(file) for file in files])
    assert result.dtype == np.uint8 and np.array_equal(result, wanted)
    for channels_last in (False, True):
        inputs = normalise(torch.from_numpy(wanted), data.mean, data.std, channels_last)
        assert np.array_equal(preprocessing.normalise(result), inputs.numpy())


@pytest.mark.parametrize("ending", ["png", "webp", "bmp"])
def test_digits_as_files_are_the_digits(digits: Any, tmp_path: Path, ending: str) -> None:
    ids = digits.splits["test"].indices[:40]
    files = []
    for name, pixels in zip(ids, digits.splits["test"].source.batch(ids)):
        files.append(tmp_path / f"{name}.{ending}")
        Image.fromarray(pixels[0]).save(files[-1], **({"lossless": True} if ending == "webp" else {}))
    assert_equal_bits(preprocessing_of(digits), digits, files, ids)


@pytest.mark.parametrize(("size", "resize"), [(24, None), (24, 30), (80, None)])
def test_photographs_in_a_folder_are_cut_as_in_training(tmp_path: Path, size: int, resize: int | None) -> None:
    rows = np.random.default_rng(0)
    files = []
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for number, (ending, mode) in enumerate([("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"), ("png", "L")]):
                height, width = rows.integers(size, 120, 2)
                pixels = rows.integers(0, 256, (height, width, 4), dtype=np.uint8)
                file = tmp_path / split / label / f"{number}.{ending}"
                exif = Image.Exif()
                exif[0x112] = 6  # lies on its side
                Image.fromarray(pixels).convert(mode).save(file, exif=exif)
                files += [file] if split == "test" else []
    options: dict[str, Any] = {} if resize is None else {"resize": resize}
    data = load(f"folder:{tmp_path}", image_size=size, cache_dir=tmp_path / "cache", holdout=0, **options)
    assert preprocessing_of(data).resize == resize or resize is None
    assert_equal_bits(preprocessing_of(data), data, files, data.splits["test"].indices)


def test_an_image_of_another_size_or_colour_becomes_a_digit(digits: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 50, 3), 200, np.uint8)).save(tmp_path / "a.png")
    assert preprocessing_of(digits).read(tmp_path / "a.png").tolist() == [[[200] * 8] * 8]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [9_000, 12_000, 100_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    (tmp_path / "bomb.png").write_bytes(bomb)
    reading = Preprocessing(channels=3, size=8, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(BadImage, match=r"more than the"):
        reading.read(tmp_path / "bomb.png")


GOOD: dict[str, Any] = {"channels": 1, "size": 8, "resize": 8, "mean": (0.5,), "std": (0.5,)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"channels": 2}, "1 or 3 channels, not 2"),
        ({"size": 0}, "must be positive"),
        ({"size": 9}, "size 9 and resize 8"),
        ({"size": 10_000, "resize": 10_000}, "at most 8192"),
        ({"mean": ()}, "1 finite means"),
        ({"std": (float("inf"),)}, "1 finite means"),
        ({"std": (0.0,)}, "positive standard deviations"),
    ],
)
def test_numbers_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Preprocessing(**{**GOOD, **changes})
