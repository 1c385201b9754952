"""tar: WebDataset shards give the images of the same files in folders, batch by batch; bad shards are named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.data.load import load
from offramp.data.loading import Loader
from offramp.data.split_record import content_digest, record_of


def jpeg(number: int) -> bytes:
    pixels = np.random.RandomState(number).randint(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write(path: Path, numbers: range, label: str = "cls") -> Path:
    """A shard; image n is of class n % 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            add(archive, f"a/{number:04d}.jpg", jpeg(number))
            content = str(number % 2) if label == "cls" else json.dumps({"label": number % 2})
            add(archive, f"a/{number:04d}.{label}", content.encode())
            add(archive, f"a/{number:04d}.txt", b"left out")
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write(tmp_path / "set/x-train-000.tar", range(30))
    write(tmp_path / "set/x-train-001.tar", range(30, 60), "json")
    write(tmp_path / "set/x-val-000.tar", range(60, 80))
    return tmp_path / "set"


def test_shards_give_what_the_same_files_in_folders_give(shards: Path, tmp_path: Path) -> None:
    for number in range(80):
        file = tmp_path / f"folders/{'train' if number < 60 else 'val'}/{number % 2}/{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    common = {"image_size": 32, "cache_dir": tmp_path / "cache", "holdout": 0.2}
    tar = load(f"tar:{shards}", **common)
    folder = load(f"folder:{tmp_path / 'folders'}", streaming=True, **common)
    assert tar.classes == folder.classes == ("0", "1") and set(tar.splits) == {"train", "val", "cal", "test"}
    assert {name: len(split) for name, split in tar.splits.items()} == {
        name: len(split) for name, split in folder.splits.items()
    }
    assert tar.splits["train"].source.streaming
    images = {
        kind: data.splits["test"].source.batch(data.splits["test"].indices)
        for kind, data in (("tar", tar), ("folder", folder))
    }
    assert {image.tobytes() for image in images["tar"]} == {image.tobytes() for image in images["folder"]}
    assert list(tar.splits["test"].labels) == [0, 1] * 10
    assert record_of(tar).kind == "names" and content_digest(tar.splits["test"]) != content_digest(tar.splits["val"])


def test_any_batch_can_be_made_again_and_processes_share_none(shards: Path, tmp_path: Path) -> None:
    data = load(f"tar:{shards}", image_size=32, cache_dir=tmp_path / "cache")
    split, device = data.splits["train"], torch.device("cpu")

    def loader(rank: int, world: int) -> Loader:
        return Loader(split, data, batch_size=8, augment=True, device=device, seed=3, rank=rank, world=world)

    whole, later = list(loader(0, 1).epoch(1)), list(loader(0, 1).epoch(1, 2))
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(whole[2:], later, strict=True))
    halves = [torch.cat([batch.ids for batch in loader(rank, 2).epoch(1)]) for rank in (0, 1)]
    assert sorted(torch.cat(halves).tolist()) == sorted(torch.cat([batch.ids for batch in whole]).tolist())


def test_bad_shards_are_named(shards: Path, tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(ValueError) as caught:
            load(f"tar:{shards}", image_size=32, cache_dir=tmp_path / "cache")
        return str(caught.value)

    shard = shards / "x-train-001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        end = archive.getmembers()[45].offset
    shard.write_bytes(whole[:end])
    assert f"{shard} is damaged or truncated after a/" in refused()
    shard.write_bytes(whole[: 45 * 512])
    assert f"{shard} is" in refused()
    shard.write_bytes(b"not a shard" * 100)
    assert f"{shard} is no plain tar file" in refused()
    with tarfile.open(shard, "w") as archive:
        add(archive, "a/1.jpg", jpeg(1))
    assert refused() == f"{shard}: a/1 has no label: add a/1.cls, or a/1.json with `label`"
    with tarfile.open(shard, "w") as archive:
        add(archive, "a/1.jpg", jpeg(1))
        add(archive, "a/1.cls", b"cat")
    assert "store them alike" in refused() and f"{shard}: a/1" in refused()
    with tarfile.open(shard, "w") as archive:
        for _ in range(2):
            add(archive, "a/1.jpg", jpeg(1))
            add(archive, "a/1.cls", b"1")
    assert refused() == f"{shard} contains a/1.jpg twice: give every sample a name of its own"
    with tarfile.open(shard, "w") as archive:
        for ending in ("png", "cls", "jpg", "json"):
            add(archive, f"a/1.{ending}", jpeg(1) if ending in ("png", "jpg") else b"1")
    assert refused() == f"{shard}: a/1 has several images (jpg, png): keep one of them"
    with tarfile.open(shard, "w") as archive:
        add(archive, "a/1.jpg", jpeg(1)[:300])
        add(archive, "a/1.cls", b"1")
    assert f"{shard}: a/1 (" in refused()
    shard.write_bytes(whole)
    with pytest.raises(FileNotFoundError, match=r"contains no \*\.tar files"):
        (tmp_path / "empty").mkdir()
        load(f"tar:{tmp_path / 'empty'}")


def test_what_is_damaged_is_left_out_on_request(shards: Path, tmp_path: Path) -> None:
    shard = shards / "x-train-001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
    options = {"image_size": 32, "cache_dir": tmp_path / "cache", "holdout": 0, "skip_damaged": True}
    shard.write_bytes(whole[: members[46].offset_data - 512])  # image 45 is there, its label is not
    data = load(f"tar:{shards}", **options)
    assert len(data.splits["train"]) == 45
    assert data.notes[0] == (
        f"{shard} is damaged or truncated after a/0045.jpg: the rest was left out (46 files before it are used)"
    )
    shard.write_bytes(b"not a shard" * 100)
    data = load(f"tar:{shards}", **options)
    assert len(data.splits["train"]) == 30 and data.notes[0].startswith(f"{shard} is no plain tar file (")
    start = members[3].offset_data + 100
    shard.write_bytes(whole[:start] + bytes(members[3].size - 100) + whole[start + members[3].size - 100 :])
    data = load(f"tar:{shards}", **options)
    assert data.notes[0].startswith(f"tar:{shards}: without 1 of 80 images, which cannot be decoded: {shard}: a/0031 (")
    assert 31 not in data.splits["train"].ids and len(data.splits["train"]) == 59
