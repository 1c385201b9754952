"""Cutting splits: stratified, seeded, and exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.data.splits import consecutive, halves, subset, take

counts = st.lists(st.integers(3, 30), min_size=1, max_size=6)


def labelled(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return labels, np.arange(len(labels))


@given(counts, st.floats(0, 0.6), st.integers(0, 2**40))
def test_take_is_a_stratified_partition(sizes, share, seed):
    labels, rows = labelled(sizes)
    taken, left = take(labels, rows, share, 1, seed)
    assert np.array_equal(np.sort(np.concatenate([taken, left])), rows)
    for label, size in enumerate(sizes):
        assert (labels[taken] == label).sum() == max(1, round(share * size))


@given(counts, st.integers(0, 100))
def test_halves_are_even_in_every_class_and_in_all(sizes, seed):
    labels, rows = labelled(sizes)
    first, second = halves(labels, rows, seed)
    assert np.array_equal(np.sort(np.concatenate([first, second])), rows)
    assert abs(len(first) - len(second)) <= 1
    difference = np.bincount(labels[first], minlength=len(sizes)) - np.bincount(labels[second], minlength=len(sizes))
    assert np.abs(difference).max() <= 1


def test_the_draw_never_changes():
    # RandomState is frozen: the same samples are held out on every machine and with every version
    labels, rows = labelled([10, 10])
    assert take(labels, rows, 0.3, 1, 0)[0].tolist() == TAKEN
    assert subset(labels, rows, 2, 0).tolist() == SUBSET


TAKEN = [3, 6, 7, 10, 14, 19]
SUBSET = [1, 5, 11, 16]


def test_too_few():
    labels, rows = labelled([3, 1])
    with pytest.raises(ValueError, match="class 1 has 1 images, too few to set 1 of them aside"):
        take(labels, rows, 0.5, 1, 0)
    with pytest.raises(ValueError, match="class 1 has one image to share between val and cal"):
        halves(labels, rows, 0)
    with pytest.raises(ValueError, match="class 1 has 1 images to train on, fewer than per_class=2: ask for fewer"):
        subset(labels, rows, 2, 0)


def test_consecutive():
    rows = consecutive({"train": 3, "test": 2})
    assert {name: part.tolist() for name, part in rows.items()} == {"train": [0, 1, 2], "test": [3, 4]}
