"""The recipe of the papers' ImageNet setting starts from folders, Parquet and tar shards of 1,000 classes."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offramp.train.run_dir import read_history

CLASSES = 1000
SPLITS = ("train", "val")


def images(per_class: int) -> Iterator[tuple[int, int, bytes]]:
    """(number, class, JPEG of 44 x 40 pixels), class after class again and again."""
    draw = np.random.default_rng(0)
    for number in range(CLASSES * per_class):
        with io.BytesIO() as file:
            coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            coarse.resize((44, 40), Image.Resampling.BICUBIC).save(file, "JPEG")
            yield number, number % CLASSES, file.getvalue()


def as_folder(root: Path, split: str, per_class: int) -> None:
    for number, label, data in images(per_class):
        file = root / split / f"n{label:08}" / f"{number}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def as_parquet(root: Path, split: str, per_class: int) -> None:
    _, labels, encoded = zip(*images(per_class), strict=True)
    rows = pa.table({"image": [{"bytes": data, "path": None} for data in encoded], "label": list(labels)})
    pq.write_table(rows, root / f"{split}-00000-of-00001.parquet", row_group_size=500)


def as_tar(root: Path, split: str, per_class: int) -> None:
    with tarfile.open(root / f"imagenet-{split}-000000.tar", "w") as archive:
        for number, label, data in images(per_class):
            for ending, content in (("jpg", data), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:08}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "write", "per_class"), [("folder", as_folder, 2), ("parquet", as_parquet, 2), ("tar", as_tar, 100)]
)
def test_one_epoch_of_the_recipe(
    tmp_path: Path,
    succeed: Callable[..., None],
    kind: str,
    write: Callable[[Path, str, int], None],
    per_class: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In small: images of 32 pixels and a narrow ResNet18; 100,000 images from tar shards."""
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "imagenet").mkdir()
    for split, count in zip(SPLITS, (per_class, 1), strict=True):
        write(tmp_path / "imagenet", split, count)
    words = ["--recipe", "muse-imagenet-resnet50", "--data", f"{kind}:imagenet", "--data-dir", tmp_path]
    words += ["--net", "resnet18", "--width", 4, "--image-size", 32, "--data.resize", 37, "--epochs", 1]
    succeed("train", *words, "--precision", 32, "--out", tmp_path / "run", "--json")
    steps = [record for record in read_history(tmp_path / "run") if record["kind"] == "step"]
    assert len(steps) == -(-CLASSES * per_class // 256) and all(record["loss"] is not None for record in steps)
    succeed("evaluate", tmp_path / "run", "--json")
