"""The restricted reader: what CIFAR's files contain is read, everything else is refused and never run."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from offramp.data import load
from offramp.data._pickle import pixels_in, read_pickle


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_of_bytes_in_every_old_protocol(protocol, write):
    images = write.random_images(4).reshape(-1, 3072)
    value = {b"data": images, b"labels": [1, 2, 3, 4], "filenames": [b"a", b"b"]}
    result = read_pickle(pickle.dumps(value, protocol), "f")
    assert np.array_equal(pixels_in(result, "f"), images.reshape(-1, 3, 32, 32))
    assert result["labels"] == [1, 2, 3, 4]


def test_arrays_in_fortran_order(write):
    images = np.asfortranarray(write.random_images(4).reshape(-1, 3072))
    result = read_pickle(pickle.dumps({"data": images}, 2), "f")
    assert np.array_equal(result["data"], images)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_malicious_pickle_is_refused_and_does_nothing(tmp_path, protocol):
    target = tmp_path / "made"
    content = pickle.dumps({b"data": Malicious(str(target))}, protocol)
    with pytest.raises(ValueError, match=r"train is refused: it asks for posix.mkdir, which no CIFAR file contains"):
        read_pickle(content, "train")
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"cnumpy\nndarray.__class__\n.",
        b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.",
    ],
)
def test_other_names_are_refused(content):
    with pytest.raises(ValueError, match=r"^f is (refused|damaged)"):
        read_pickle(content, "f")


def test_array_of_objects_is_refused():
    content = pickle.dumps({"data": np.array([{}, {}], dtype=object)}, 2)
    with pytest.raises(ValueError, match="an array that is not of bytes"):
        read_pickle(content, "f")


def test_damaged_and_foreign_content(write):
    whole = pickle.dumps({"data": write.random_images(1).reshape(-1, 3072)}, 2)
    with pytest.raises(ValueError, match=r"^f is (refused|damaged)"):
        read_pickle(whole[:-50], "f")
    with pytest.raises(ValueError, match="holds no dictionary"):
        read_pickle(pickle.dumps([1, 2], 2), "f")
    with pytest.raises(ValueError, match=r"should hold 'data' of N x 3072 bytes, but has \(2, 5\)"):
        pixels_in(read_pickle(pickle.dumps({"data": np.zeros((2, 5), np.uint8)}, 2), "f"), "f")


def encoded_often(size, times):
    """A text of `size` letters that is asked for `times` times."""
    text = b"X" + size.to_bytes(4, "little") + b"a" * size
    once = b"c_codecs\nencode\nq\x01" + text + b"q\x02" + b"0" * 2
    return b"\x80\x02" + once + b"]" + b"h\x01h\x02\x85Ra" * times + b"."


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr" + (0x4000000).to_bytes(4, "little") + b".",
        b"N" + b"p4000000000\n.",
        b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b".",
        b"\x80\x04\x8e" + (1 << 33).to_bytes(8, "little") + b".",
        encoded_often(100_000, 1000),
    ],
)
def test_memory_is_bounded_by_the_size_of_the_pickle(content):
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^f is (refused: it would take much more memory|damaged)"):
        read_pickle(content, "f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(content) + (1 << 20)


def test_nested_labels_and_keys_are_refused_before_they_are_multiplied(tmp_path, write):
    write.cifar100_python(tmp_path, 1)
    inner = [0] * 100
    batch = {b"data": write.random_images(100).reshape(-1, 3072), b"fine_labels": [inner] * 100}
    (tmp_path / "train").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(ValueError, match=r"train: its labels are not integers \(it must be a flat list of them\)"):
        load("cifar100", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^f: a key is not text"):
        read_pickle(pickle.dumps({(1, 2): 3}, 2), "f")
