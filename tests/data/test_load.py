"""Names, options and splits: what `load` promises whatever the source."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offramp.data import Source, available, load


def ids(data):
    return {name: split.ids for name, split in data.splits.items()}


def test_the_room_imports_neither_torch_nor_pyarrow():
    code = "import offramp.data, sys; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]


def test_available_lists_every_source_with_its_first_line():
    result = dict(available())
    assert set(result) == {"digits", "cifar10", "cifar100", "folder", "parquet", "hub", "tar"}
    assert all(line and not line.startswith('"') for line in result.values())


def test_splits_partition_the_data_and_hold_every_class():
    data = load("digits")
    assert list(data.splits) == ["train", "val", "cal", "test"]
    together = np.concatenate(list(ids(data).values()))
    assert len(together) == len(np.unique(together)) == 1797
    for split in data.splits.values():
        assert set(split.labels.tolist()) == set(range(10))
    assert isinstance(data.splits["train"].source, Source)


def test_the_seed_changes_what_is_held_out_but_not_test():
    first, again, other = load("digits"), load("digits"), load("digits", split_seed=1)
    for name, rows in ids(first).items():
        assert np.array_equal(rows, ids(again)[name])
    assert np.array_equal(ids(first)["test"], ids(other)["test"])
    assert not np.array_equal(ids(first)["val"], ids(other)["val"])


def test_nothing_held_out():
    data = load("digits", holdout=0)
    assert list(data.splits) == ["train", "test"]
    assert len(data.splits["train"]) == len(load("digits").splits["train"]) + 143


def test_per_class_includes_what_is_held_out(tmp_path, write):
    write.cifar100_binary(tmp_path, per_class=20)
    sizes = {}
    for inclusive in (True, False):
        data = load("cifar100", data_dir=tmp_path, per_class=5, per_class_includes_holdout=inclusive)
        counts = {name: np.bincount(split.labels, minlength=100) for name, split in data.splits.items()}
        assert all((count == count[0]).all() for count in counts.values())
        sizes[inclusive] = {name: int(count[0]) for name, count in counts.items()}
    assert sizes[True] == {"train": 3, "val": 1, "cal": 1, "test": 2}
    assert sizes[False] == {"train": 5, "val": 1, "cal": 1, "test": 2}


def test_smaller_subsets_lie_within_larger_ones_and_hold_out_the_same():
    small, large = load("digits", per_class=40), load("digits", per_class=80)
    assert set(ids(small)["train"]) < set(ids(large)["train"])
    assert np.array_equal(ids(small)["val"], ids(large)["val"])


def test_without_holdout_per_class_is_what_is_trained_on():
    assert len(load("digits", per_class=7, holdout=0).splits["train"]) == 70


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar1O0", {}, r"unknown data set 'cifar1O0'; the nearest is 'cifar10' \(see `offramp data`\)"),
        (str(Path(__file__).parent), {}, rf"to read this path, write data=folder:{Path(__file__).parent}"),
        ("xyz", {}, "there are 'cifar10', 'cifar100', 'digits'"),
        ("digits", {"holdout": 1.0}, r"holdout must be a share in \[0, 1\), got 1.0"),
        ("digits", {"augmentation": "crop-flp"}, "unknown data.augmentation 'crop-flp'; the nearest is 'crop-flip'"),
        ("digits", {"normalise": "imagnet"}, "the nearest is 'imagenet'"),
        ("digits", {"normalise": "imagenet"}, "is for 3 channels, but digits has 1"),
        ("digits", {"label_column": "x"}, "unknown parameter of data digits 'label_column'; there are none"),
        ("parquet:x", {"label_colum": "x"}, "parameter of data parquet 'label_colum'; the nearest is 'label_column'"),
        ("parquet:x", {"resize": "many"}, "data.resize takes a whole number, got 'many'"),
        ("folder:x", {"image_size": 0}, "image_size must be at least 1, got 0"),
        ("digits", {"streaming": True}, "digits cannot be streamed: they are held in memory"),
        ("digits", {"image_size": 32}, "image_size=32 is not possible"),
        ("digits:x", {}, "take no path"),
        ("digits", {"per_class": 14}, "per_class=14 leaves nothing to train on, since it includes the 15"),
        ("digits", {"per_class": 4000}, r"digits: class 0 \(0\) has 1\d\d images to train on, fewer than"),
        ("digits", {"holdout": 0.999}, r"class 0 \(0\) has 142 images, too few to set"),
        ("folder", {}, "write folder:PATH"),
        ("parquet", {}, "write parquet:PATH"),
        ("hub", {}, "write hub:OWNER/NAME"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_other_constants_and_augmentation_on_demand(tmp_path, write):
    write.cifar10_binary(tmp_path)
    data = load("cifar10", data_dir=tmp_path, holdout=0, normalise="dbt", augmentation="crop-flip-normalised")
    assert data.mean == (0.507, 0.487, 0.441)
    assert data.augmentation == "crop-flip-normalised"


def test_all_that_is_held_out_may_be_val_and_cal():
    apart, shared = load("digits", holdout=0.2), load("digits", holdout=0.2, shared_holdout=True)
    held = np.union1d(ids(apart)["val"], ids(apart)["cal"])
    assert all(np.array_equal(np.sort(ids(shared)[name]), held) for name in ("val", "cal"))
    assert np.array_equal(ids(shared)["train"], ids(apart)["train"])
