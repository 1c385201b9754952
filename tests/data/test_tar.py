"""tar: WebDataset shards give the images of the same files in folders, batch by batch; bad shards are named."""

import io
import json
import shutil
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


def test_no_shard_of_a_folder_is_left_out_or_read_twice_in_silence(shards: Path, tmp_path: Path) -> None:
    def train(holdout: float = 0) -> int:
        return len(load(f"tar:{shards}", image_size=32, cache_dir=tmp_path / "cache", holdout=holdout).splits["train"])

    def refused() -> str:
        with pytest.raises(ValueError) as caught:
            train()
        return str(caught.value)

    second = shards / "x-train-001.tar"
    (shards / ".checkpoints").mkdir()
    shutil.copy(second, shards / ".checkpoints/x-train-001.tar")
    assert train() == 60, "hidden copies are not read"
    (tmp_path / "elsewhere").mkdir()
    second.rename(tmp_path / "elsewhere/one.TAR")
    (shards / "train").symlink_to(tmp_path / "elsewhere")
    assert train() == 60, "links to folders are followed, and endings may be upper-case"
    (shards / "more-train").symlink_to(tmp_path / "elsewhere")
    assert "train would be read twice, because of a link to it or in it: remove the link" in refused()
    (shards / "more-train").unlink()
    (shards / "train").unlink()
    second.symlink_to(shards / "x-train-000.tar")
    assert refused() == f"{shards / 'x-train-000.tar'} and {second} are one file: remove one of them"
    second.unlink()
    second.symlink_to(tmp_path / "nowhere.tar")
    assert refused() == f"{second} is a link that leads nowhere: restore the file, or remove the link"
    second.unlink()
    packed = shards / "x-train-001.tar.gz"
    packed.write_bytes(b"")
    assert refused() == f"{packed} is compressed, so that no image can be read by itself: unpack or move it"
    packed.unlink()
    (shards / "x-train-000.tar").rename(shards / "x-train-00000-of-00002.tar")
    assert refused() == f"{shards / 'x-train-00001-of-00002.tar'} is missing, one of 2 shards: download it again"


def test_no_sample_of_a_shard_is_left_out_in_silence(shards: Path, tmp_path: Path) -> None:
    options = {"image_size": 32, "cache_dir": tmp_path / "cache", "holdout": 0}
    shard = shards / "x-train-001.tar"
    whole = shard.read_bytes()
    joined = whole + (shards / "x-train-000.tar").read_bytes()
    with tarfile.open(shard) as archive:
        hole = archive.getmembers()[45].offset
    for content in (joined, whole[:hole] + bytes(512) + whole[hole + 512 :]):
        shard.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{shard} continues beyond its end, as damaged or joined tar files do, aft"
        ):
            load(f"tar:{shards}", **options)
    with tarfile.open(shard, "w") as archive:
        add(archive, "1.bmp", jpeg(1))
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "1.bmp"
        archive.addfile(link)
        add(archive, "3.heic", jpeg(3))
        for number in (1, 2, 3):
            add(archive, f"{number}.cls", b"1")
    data = load(f"tar:{shards}", **options)
    assert len(data.splits["train"]) == 32 and data.notes[0] == f"{shard}: 1 sample without an image, left out (3)"
    images = data.splits["train"].source.batch(np.array([30, 31]))
    assert np.array_equal(images[0], images[1])


def test_a_shard_without_files_is_noted(shards: Path, tmp_path: Path) -> None:
    options = {"image_size": 32, "cache_dir": tmp_path / "cache", "holdout": 0}
    tarfile.open(shards / "x-train-002.tar", "w").close()
    data = load(f"tar:{shards}", **options)
    assert len(data.splits["train"]) == 60 and data.notes == (f"{shards / 'x-train-002.tar'} is empty",)
    with tarfile.open(shards / "x-train-002.tar", "w") as archive:
        add(archive, "a.txt", b"no image")
    with pytest.raises(ValueError, match=r"x-train-002.tar contains no images \(bmp, gif, jpeg, jpg, "):
        load(f"tar:{shards}", **options)


@pytest.mark.parametrize("label", ["null", "1.0", "[1]", '{"a": 1}'])
def test_labels_that_are_none_are_named(shards: Path, tmp_path: Path, label: str) -> None:
    shard = shards / "x-train-001.tar"
    with tarfile.open(shard, "w") as archive:
        add(archive, "1.jpg", jpeg(1))
        add(archive, "1.json", b'{"label": %s}' % label.encode())
    with pytest.raises(ValueError, match=r"1\.json: the label .* is neither a whole number nor a text: correct it"):
        load(f"tar:{shards}", image_size=32, cache_dir=tmp_path / "cache")


def test_two_spellings_of_a_name_are_one_class(tmp_path: Path) -> None:
    """The names look the same, in Unicode's composed form (NFC) and decomposed (NFD)."""
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for number in range(60):
            add(archive, f"{number}.jpg", jpeg(number))
            add(archive, f"{number}.cls", ("dog", "caf\u00e9", "cafe\u0301")[number % 3].encode())
    data = load(f"tar:{tmp_path / 'one.tar'}", image_size=32, cache_dir=tmp_path / "cache")
    assert data.classes == ("caf\u00e9", "dog")


def test_shards_of_train_alone_are_divided(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", range(60))
    data = load(f"tar:{tmp_path / 'train.tar'}", image_size=32, cache_dir=tmp_path / "cache")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 48, "val": 3, "cal": 3, "test": 6}


def test_shards_whose_names_say_more_than_their_split_are_said(shards: Path) -> None:
    write(shards / "x-train-extra-000.tar", range(80, 90))
    said = f"{shards}: train has shards of several names (x-train, x-train-extra): all of them are used"
    assert load(f"tar:{shards}", image_size=32, holdout=0.2).notes[0] == said
