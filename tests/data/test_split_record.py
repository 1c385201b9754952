"""The record of a run's split: what it holds, and what becomes of data that have changed since."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.data import DataSet, load
from offramp.data import split_record as records
from offramp.data.splits import SPLITS

CLASSES = "xyz"


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def undivided(root: Path, each: int = 20) -> Path:
    for label, name in enumerate(CLASSES):
        for number in range(each):
            picture(root / name / f"{number:03d}.png", 1000 * label + number)
    return root


def opened(root: Path, **changes: object) -> DataSet:
    values = {"holdout": 0.3, "image_size": 8, "cache_dir": root.parent / "cache", **changes}
    return load(f"folder:{root}", **values)  # type: ignore[arg-type]


def names(data: DataSet) -> dict[str, set[str]]:
    """The files of every split, below the root."""
    files = data.splits["train"].source.files  # type: ignore[attr-defined]
    return {name: {"/".join(files[row].parts[-2:]) for row in split.indices} for name, split in data.splits.items()}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_record_is_read_as_it_was_written_and_fits_the_data(tmp_path: Path, streaming: bool) -> None:
    data = opened(undivided(tmp_path / "p"), streaming=streaming)
    record = records.record_of(data, "run", {"names": np.arange(3, dtype=np.uint64)})
    records.save(record, tmp_path / "split.safetensors")
    again = records.load(tmp_path / "split.safetensors")
    assert again is not None and again.kind == ("names" if streaming else "files") and again.start == "run"
    for one, other in ((record.splits, again.splits), (record.before, again.before)):
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    assert records.same(data, again, SPLITS) and records.restored(data, again, "run", False) is data
    assert records.changed(data, again, "run") == ""
    assert records.load(tmp_path / "none") is None


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_were_trained_on_never_enter_another_split(tmp_path: Path, streaming: bool) -> None:
    root = undivided(tmp_path / "p")
    before = opened(root, streaming=streaming)
    record = records.record_of(before)
    for label, name in enumerate(CLASSES):
        picture(root / name / "000a.png", 90 + label)
    after = opened(root, streaming=streaming)
    assert names(after)["test"] & names(before)["train"]  # a new split would take them
    kept = records.restored(after, record, "runs/a", False)
    assert names(kept) == names(before)
    assert kept.notes[-1] == (
        f"folder:{root}: images that runs/a was not made with: 3; they are left out (naming data_dir uses them)"
    )
    used = names(records.restored(after, record, "runs/a", True))
    assert not any(used[name] & names(before)["train"] for name in ("val", "cal", "test"))
    assert all(used[name] >= names(before)[name] for name in used)
    assert records.changed(after, record, "runs/a").startswith("3 images are new, 0 are gone, ")


def test_images_that_are_gone_are_counted_and_an_empty_split_is_refused(tmp_path: Path) -> None:
    root = undivided(tmp_path / "p")
    before = opened(root)
    record = records.record_of(before)
    for gone in sorted(names(before)["test"])[:2]:
        (root / gone).unlink()
    kept = records.restored(opened(root), record, "runs/a", False)
    assert names(kept)["train"] == names(before)["train"] and len(kept.splits["test"]) == len(before.splits["test"]) - 2
    assert kept.notes[-1].endswith(f"images of runs/a that are gone: 2 of {len(before.splits['test'])} test")
    others = tmp_path / "others"
    for label, name in enumerate(CLASSES):
        for number in range(20):
            picture(others / name / f"{number}.png", 50_000 + 1000 * label + number)
    with pytest.raises(ValueError, match="contains none of the val images of runs/a, and no new ones to take instead"):
        records.restored(opened(others), record, "runs/a", False)
    assert len(records.restored(opened(others), record, "runs/a", True).splits["test"]) == 6


def test_what_was_left_out_by_per_class_is_not_new(tmp_path: Path) -> None:
    root = undivided(tmp_path / "p")
    record = records.record_of(opened(root, per_class=9))
    assert len(record.splits[records.UNUSED])
    picture(root / "x" / "000a.png", 70_000)
    kept = records.restored(opened(root, per_class=9), record, "runs/a", False)
    assert "was not made with: 1;" in kept.notes[-1] and len(kept.splits["train"]) == len(record.splits["train"])


def test_images_that_are_there_twice_stay_where_they_are(tmp_path: Path) -> None:
    root = undivided(tmp_path / "p")
    first = names(opened(root))
    twin = sorted(first["train"])[0]
    (root / sorted(first["test"])[0]).write_bytes((root / twin).read_bytes())
    before = opened(root)
    assert names(before) == first
    record = records.record_of(before)
    assert records.restored(before, record, "runs/a", False) is before
    (root / "x" / "zzz.png").write_bytes((root / twin).read_bytes())
    assert names(records.restored(opened(root), record, "runs/a", False))["test"] <= first["test"] | {"x/zzz.png"}


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.safetensors"
    records.save(records.record_of(load("digits")), path)
    whole = path.read_bytes()
    for text in (whole[:-1], whole[:100], whole[:-9] + b"x" + whole[-8:], b""):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"split\.safetensors is damaged \(.*which images the run was trained on"):
            records.load(path)


def test_images_told_apart_in_another_way_are_refused() -> None:
    data = load("digits")
    record = dataclasses.replace(records.record_of(data), kind="files")
    with pytest.raises(ValueError, match="digits cannot be compared with what runs/a was trained on"):
        records.restored(data, record, "runs/a", False)
    assert records.changed(data, record, "runs/a") == "its images were identified by files, these are pixels 1x8x8"


@pytest.mark.parametrize("change", ["labels", "names"])
def test_other_labels_of_the_same_images_are_a_change(change: str) -> None:
    """A resumed run went on with the labels of tar shards that had been made again."""
    data = load("digits")
    record = records.record_of(data)
    source = data.splits["train"].source
    labels = source.labels.copy()
    if change == "labels":
        labels[data.splits["train"].ids[0]] ^= 1
    classes = data.classes if change == "labels" else (*data.classes[:9], "nine")
    other = dataclasses.replace(source, labels=labels)
    splits = {name: dataclasses.replace(split, source=other) for name, split in data.splits.items()}
    relabelled = dataclasses.replace(data, splits=splits, classes=classes)
    assert records.changed(relabelled, record, "runs/a") == "its images have other labels"
    assert records.changed(relabelled, dataclasses.replace(record, labels=""), "runs/a") == "", "an earlier version's"


def test_the_digest_of_a_split_is_that_of_its_images_and_labels(tmp_path: Path) -> None:
    root = undivided(tmp_path / "p", 10)
    for streaming in (False, True):
        before = {
            name: records.content_digest(split) for name, split in opened(root, streaming=streaming).splits.items()
        }
        assert len(set(before.values())) == 4
        changed = sorted(names(opened(root))["test"])[0]
        picture(root / changed, 77 + streaming)
        after = {
            name: records.content_digest(split) for name, split in opened(root, streaming=streaming).splits.items()
        }
        assert {name for name in after if after[name] != before[name]} == {"test"}
