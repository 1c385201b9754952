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


def test_it_does_not_stream():
    with pytest.raises(ValueError, match="does not stream"):
        load("hub:owner/name", streaming=True)


def test_tables_of_the_library_are_read_as_they_are(write):
    datasets = pytest.importorskip("datasets")
    from offramp.data._labels import read_labels
    from offramp.data._shards import images
    from offramp.data.hub import parts_of

    pictures = [write.png(image) for image in write.random_images(6, 8)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": data, "path": None} for data in pictures], "label": [0, 1] * 3}
    table = datasets.Dataset.from_dict(rows, features=features)
    parts, _ = parts_of("hub:x", {"train": table, "validation": table, "extra": table})
    assert list(parts) == ["train", "val"]
    assert [item.data for item in images(parts["train"][0], "img")] == pictures
    labels, classes, _ = read_labels(parts["train"], "label", 2)
    assert np.array_equal(labels, [0, 1] * 3) and classes == ("a", "b")
