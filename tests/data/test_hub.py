"""The Hub: without `datasets` a clear error; with it, tables that were made here are read without the network."""

import importlib.util

import numpy as np
import pytest

from offramp.data import load

HERE = importlib.util.find_spec("datasets") is not None


@pytest.mark.skipif(HERE, reason="`datasets` is installed")
@pytest.mark.parametrize("name", ["hub:owner/name", "cifar100"])
def test_without_datasets_the_extra_is_named(name):
    with pytest.raises(ImportError, match=r"hub:owner/name needs `datasets`: pip install 'offramp\[hub\]'"):
        load(name, data_dir="hub:owner/name")


def test_tables_of_the_library_are_read_as_they_are(write):
    datasets = pytest.importorskip("datasets")
    from offramp.data._labels import read_labels
    from offramp.data._shards import images
    from offramp.data.hub import parts_of

    pictures = [write.png(image) for image in write.random_images(6, 8)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": data, "path": None} for data in pictures], "label": [0, 1] * 3}
    table = datasets.Dataset.from_dict(rows, features=features)
    parts, *_ = parts_of("hub:x", {"train": table, "validation": table})
    assert list(parts) == ["train", "val"]
    assert [item.data for item in images(parts["train"][0], "img")] == pictures
    labels, classes, _ = read_labels(parts["train"], "label", 2)
    assert np.array_equal(labels, [0, 1] * 3) and classes == ("a", "b")


@pytest.fixture
def tables(write):
    """train and test as the library has them, and a second table of the first one's images in two pieces."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def table(count, seed):
        images = [{"bytes": write.png(one), "path": None} for one in write.random_images(count, 24, seed)]
        return datasets.Dataset.from_dict({"img": images, "label": [0, 1] * (count // 2)}, features=features)

    return {"train": datasets.concatenate_datasets([table(20, 1), table(10, 2)]), "test": table(6, 3)}


def test_streaming_gives_what_memory_gives(tables, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: tables)
    memory, stream = (load("hub:x", streaming=streaming, image_size=24, holdout=0.2) for streaming in (False, True))
    assert stream.splits["train"].source.streaming and not memory.splits["train"].source.streaming
    for name, split in memory.splits.items():
        other = stream.splits[name]
        assert np.array_equal(split.ids, other.ids) and np.array_equal(split.labels, other.labels)
        assert np.array_equal(split.source.batch(split.ids), other.source.batch(split.ids))
    source = stream.splits["train"].source
    assert source.images.where(29) == "hub:x train, row 29" and source.images.where(30) == "hub:x test, row 0"
    assert len({*source.identities(np.arange(36))}) == 36


def test_two_splits_of_one_meaning_are_refused_and_a_test_split_without_labels_is_not_used(tables, write, monkeypatch):
    import datasets

    loaded = {"train": tables["train"], "dev": tables["test"], "validation": tables["test"]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: loaded)
    with pytest.raises(ValueError, match="hub:x has the splits dev and validation: only one of them can be used"):
        load("hub:x")
    images = [{"bytes": write.png(one), "path": None} for one in write.random_images(3, 24, 9)]
    hidden = datasets.Dataset.from_dict({"img": images, "label": [-1] * 3}, features=tables["test"].features)
    loaded = {"test": hidden, "train": tables["train"], "validation": tables["test"]}
    data = load("hub:x", streaming=True, image_size=24, holdout=0.2)
    assert len(data.splits["test"]) == 6 and "the test split has no labels" in data.notes[0]
    source = data.splits["test"].source
    assert source.images.where(int(data.splits["test"].ids[0])) == "hub:x val, row 0"
    expected = write.png(write.random_images(6, 24, 3)[0])
    assert source.images.read(int(data.splits["test"].ids[0])) == expected


def test_splits_that_are_not_used_are_said(tables, monkeypatch):
    import datasets

    loaded = {"Train": tables["train"], "dev": tables["test"], "test_extra": tables["test"], "extra": tables["test"]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: loaded)
    assert (
        "hub:x: used are the splits Train, dev; not used, since unknown by name: test_extra, extra"
        in load("hub:x", image_size=24, holdout=0.2).notes
    )
    del loaded["test_extra"], loaded["extra"]
    assert not any("used" in note for note in load("hub:x", image_size=24, holdout=0.2).notes)
