"""Random crops by libjpeg-turbo: those of Pillow to a few grey levels, and Pillow's own where they cannot be had."""

import io
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.data import _jpeg_part, _turbo, load
from offramp.data.augment import box_draws, boxes, mirrored, window_draws
from offramp.data.encoded import EncodedSource, ImageFiles
from offramp.data.loading import Loader
from offramp.images import Fit

simplejpeg = pytest.importorskip("simplejpeg")


def picture(width: int, height: int) -> Image.Image:
    """Smooth shapes of many sizes, as in photographs."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(columns / (9 + 14 * c) + rows / (30 - 7 * c)) + np.cos(rows / 11 + c) for c in range(3)]
    return Image.fromarray((127 + 60 * np.stack(waves, -1)).clip(0, 255).astype(np.uint8))


def sources(folder: Path, fit: Fit) -> tuple[EncodedSource, EncodedSource]:
    files = sorted(folder.iterdir())
    labels = np.zeros(len(files), np.int64)
    pillow, turbo = (
        EncodedSource("x", ("a",), labels, ImageFiles(files), fit, decoder) for decoder in ("pillow", "turbo")
    )
    return pillow, turbo


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(130, 90), (700, 500)], ids=["whole", "scaled"])
def test_crops_and_windows_are_those_of_pillow_to_a_few_grey_levels(
    tmp_path: Path, size: tuple[int, int], interpolation: str
) -> None:
    for number in range(8):
        picture(size[0] + number, size[1]).save(tmp_path / f"{number}.jpg", quality=95)
    pillow, turbo = sources(tmp_path, Fit(64, 72, interpolation))
    ids, rows = np.arange(8), torch.arange(8)
    for name, draws in (("crops", box_draws(1, 2, rows)), ("windows", window_draws(1, 2, rows))):
        one, other = (getattr(source, name)(ids, draws).astype(int) for source in (pillow, turbo))
        assert one.shape == other.shape == (8, 3, 64, 64)
        assert np.abs(one - other).mean() < (0.3 if size[0] < 200 else 3), name
        for source, images in ((pillow, one), (turbo, other)):
            out = np.empty((9, 64, 64, 3), np.uint8).transpose(0, 3, 1, 2)[1:]
            assert getattr(source, name)(ids, draws, out) is out and np.array_equal(out, images), name
    assert np.array_equal(pillow.batch(ids), turbo.batch(ids))  # evaluation is always Pillow's


def test_what_is_no_upright_jpeg_of_a_usual_kind_is_pillows(tmp_path: Path) -> None:
    image, exif = picture(120, 90), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a-turned.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    image.convert("CMYK").save(tmp_path / "c-cmyk.jpg")
    pillow, turbo = sources(tmp_path, Fit(32, 36))
    draws = box_draws(0, 0, torch.arange(3))
    out = np.zeros((3, 3, 32, 32), np.uint8)
    assert list(_turbo.crops(sorted(tmp_path.iterdir()), draws, Fit(32, 36), out)) == [False] * 3 and not out.any()
    assert np.array_equal(pillow.crops(np.arange(3), draws), turbo.crops(np.arange(3), draws))
    exif[0x0112] = 1
    for name, options in (("upright", {"exif": exif}), ("grey", {})):
        with io.BytesIO() as file:
            (image.convert("L") if name == "grey" else image).save(file, "JPEG", **options)
            assert _turbo.opened(file.getvalue()) is not None, name


OPTIONS: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_rows": 1}]


@pytest.mark.parametrize("options", [*OPTIONS, {"subsampling": 1}, {"quality": 20, "optimize": True}])
@pytest.mark.parametrize("kind", ["RGB", "L"])
def test_a_part_that_is_decoded_alone_has_the_pixels_of_the_whole_image(kind: str, options: dict[str, Any]) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    with io.BytesIO() as file:
        picture(131, 97).convert(kind).save(file, "JPEG", **options)
        data = file.getvalue()
    pixels, parts = simplejpeg.decode_jpeg(data, "RGB"), _jpeg_part.decoder()
    assert parts is not None
    for number in range(200):
        draw = np.random.default_rng(number)
        high, wide = (int(side) for side in draw.integers(1, (98, 132)))
        top, left = int(draw.integers(0, 98 - high)), int(draw.integers(0, 132 - wide))
        part = parts.part(data, (top, left, high, wide))
        assert part is not None and np.array_equal(part, pixels[top : top + high, left : left + wide])
    assert parts.part(data[:2] + b"nothing", (0, 0, 1, 1)) is None


def test_crops_do_not_depend_on_nvimagecodec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    for number in range(20):
        picture(150 + number, 130).save(tmp_path / f"{number:02}.jpg")
    files, draws = sorted(tmp_path.iterdir()), box_draws(0, 1, torch.arange(20))
    decoded = list[Any]()
    own = _jpeg_part.PartDecoder.part
    monkeypatch.setattr(_jpeg_part.PartDecoder, "part", lambda *given: decoded.append(own(*given)) or decoded[-1])
    one, other = np.zeros((2, 20, 3, 64, 64), np.uint8)
    assert all(_turbo.crops(files, draws, Fit(64, 72), one))
    assert len(decoded) > 5  # the other crops are at least twice as large as 64 pixels
    monkeypatch.setattr(_jpeg_part, "decoder", lambda: None)
    assert all(_turbo.crops(files, draws, Fit(64, 72), other)) and np.array_equal(one, other)


def test_nvimagecodec_is_loaded_without_messages_and_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    picture(90, 90).save(tmp_path / "a.jpg")
    script = (
        "import os, pathlib; before = dict(os.environ)\n"
        "from offramp.data import _jpeg_part\n"
        "parts = _jpeg_part.decoder()\n"
        "data = pathlib.Path('a.jpg').read_bytes()\n"
        "print(parts.part(data, (1, 2, 3, 4)).shape, parts.part(data[:600], (60, 2, 30, 4)))\n"
        "print(before == dict(os.environ))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(3, 4, 3) None\nTrue\n", "")


@pytest.mark.parametrize(("version", "there"), [("0.8.9", False), ("0.9.0", True), ("0.10.1", True), ("1.0", True)])
def test_an_old_nvimagecodec_is_not_used(version: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("nvidia.nvimgcodec")
    _jpeg_part._library.cache_clear()
    monkeypatch.setattr(library, "__version__", version)
    assert (_jpeg_part._library() is library) == there
    _jpeg_part._library.cache_clear()


def test_without_nvimagecodec_there_is_no_decoder_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_parent(name: str) -> None:
        raise ModuleNotFoundError(name)

    for missing in (no_parent, lambda name: None):
        _jpeg_part._library.cache_clear()
        monkeypatch.setattr(_jpeg_part, "_decoders", threading.local())
        monkeypatch.setattr(_jpeg_part, "find_spec", missing)
        assert _jpeg_part.decoder() is None
    _jpeg_part._library.cache_clear()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["RGB", "L"])
def test_rows_below_a_crop_are_not_decoded_and_those_above_stay_the_same(kind: str, options: dict[str, Any]) -> None:
    with io.BytesIO() as file:
        picture(70, 100).convert(kind).save(file, "JPEG", **options)
        whole = _turbo.opened(file.getvalue())
    assert whole is not None
    pixels = simplejpeg.decode_jpeg(whole.data)
    for row in range(1, 101):
        shorter = _turbo._down_to(whole, row)
        assert np.array_equal(_turbo._pixels(shorter, whole)[:row], pixels[:row])
        assert shorter.height < 100 or "progressive" in options or row > 60


def test_what_ends_early_is_an_error_even_below_the_crop(tmp_path: Path) -> None:
    with io.BytesIO() as file:
        picture(120, 400).save(file, "JPEG", quality=95)
        data = file.getvalue()
    whole, cut = _turbo.opened(data), _turbo.opened(data[:-100])
    assert whole is not None and cut is not None and _turbo._down_to(cut, 10) is cut
    assert not _turbo._part(cut, [0, 0, 10, 10], "bilinear", torch.empty(3, 10, 10, dtype=torch.uint8))
    with_more = _turbo.opened(data + b"\0" * 20)
    assert with_more is not None and _turbo._down_to(with_more, 10).height == _turbo._down_to(whole, 10).height == 48


def test_a_damaged_jpeg_is_named(tmp_path: Path) -> None:
    picture(120, 90).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    _, turbo = sources(tmp_path, Fit(32, 36))
    with pytest.raises(ValueError, match=r"a\.jpg cannot be decoded \(image file is truncated"):
        turbo.crops(np.arange(1), box_draws(0, 0, torch.arange(1)))


def test_it_trains_from_a_folder_and_is_refused_where_it_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(12):
            picture(100 + number, 100).save(tmp_path / label / f"{number}.jpg")
    name, options = f"folder:{tmp_path}", {"image_size": 72, "decoder": "turbo"}
    data = load(name, streaming=True, **options)
    batches = [Loader(data.splits["train"], data, batch_size=6, augment=True, seed=1) for _ in range(2)]
    for one, other in islice(zip(*(loader.epoch(3) for loader in batches), strict=True), 2):
        assert torch.equal(one.inputs, other.inputs)
    with pytest.raises(
        ValueError, match=r"data.decoder=turbo is for images that are decoded in every epoch: set stream"
    ):
        load(name, **options)
    monkeypatch.setattr(_turbo, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"data.decoder=turbo needs `simplejpeg`: pip install 'offramp\[jpeg\]'"):
        load(name, streaming=True, **options)


def test_boxes_of_images_of_different_sizes_are_those_of_each() -> None:
    draws = box_draws(0, 1, torch.arange(300))
    heights, widths = torch.arange(300) % 7 * 40 + 3, torch.arange(300) % 5 * 90 + 2
    together = boxes(draws, heights, widths)
    for row in range(300):
        assert torch.equal(together[row : row + 1], boxes(draws[row : row + 1], int(heights[row]), int(widths[row])))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mirrored(layout: torch.memory_format) -> None:
    images = torch.arange(4 * 3 * 5 * 6).reshape(4, 3, 5, 6).contiguous(memory_format=layout)
    flip = torch.tensor([True, False, False, True])
    turned = mirrored(images, flip)
    assert torch.equal(turned, torch.where(flip[:, None, None, None], images.flip(3), images))
    assert turned.stride() == images.stride()
