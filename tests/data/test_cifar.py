"""CIFAR in its forms: equal content whatever the form, and every promised refusal."""

import pickle

import numpy as np
import pytest

from offramp.data import load


def content(data):
    source = data.splits["train"].source
    return source.batch(np.arange(len(source))), source.labels


@pytest.mark.parametrize("below", ["", "cifar100"])
def test_parquet_in_its_own_folder_or_the_parent(tmp_path, write, below):
    images, labels = write.cifar_parquet(tmp_path / below)
    data = load("cifar100", data_dir=tmp_path)
    pixels, result = content(data)
    assert np.array_equal(pixels, images)
    assert np.array_equal(result, labels)
    assert data.classes[:2] == ("class0", "class1")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 800,
        "val": 100,
        "cal": 100,
        "test": 200,
    }


def test_the_environment_names_the_folder(tmp_path, write, monkeypatch):
    write.cifar_parquet(tmp_path / "cifar100")
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    assert len(load("cifar100").splits["test"]) == 200


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["python", "binary"])
def test_original_versions(tmp_path, write, form, packed):
    folder = tmp_path / f"cifar-100-{form}"
    batches = getattr(write, f"cifar100_{form}")(folder)
    if packed:
        archive = write.tar(tmp_path / f"cifar-100-{form}.tar.gz", folder)
        places = [archive]
    else:
        places = [folder, tmp_path]
    for place in places:
        data = load("cifar100", data_dir=place)
        pixels, labels = content(data)
        assert np.array_equal(pixels, np.concatenate([batches["train"][0], batches["test"][0]]))
        assert np.array_equal(labels, np.concatenate([batches["train"][1], batches["test"][1]]))
        assert data.classes[99] == "fine99"


@pytest.mark.parametrize("form", ["python", "binary"])
def test_coarse_labels(tmp_path, write, form):
    getattr(write, f"cifar100_{form}")(tmp_path)
    data = load("cifar100", data_dir=tmp_path, labels="coarse")
    assert len(data.classes) == 20
    fine = load("cifar100", data_dir=tmp_path)
    assert np.array_equal(content(data)[1], content(fine)[1] % 20)


@pytest.mark.parametrize("form", ["python", "binary"])
def test_cifar10(tmp_path, write, form):
    getattr(write, f"cifar10_{form}")(tmp_path)
    data = load("cifar10", data_dir=tmp_path, holdout=0)
    assert (len(data.splits["train"]), len(data.splits["test"])) == (50, 10)
    assert np.array_equal(content(data)[0][40:50], write.random_images(10, seed=4))
    assert data.augmentation == "crop-flip"


def test_cifar10_parquet_does_not_take_cifar100(tmp_path, write):
    write.cifar_parquet(tmp_path, per_class=10)
    with pytest.raises(FileNotFoundError, match=r"no cifar10 in .* labels in 'label'"):
        load("cifar10", data_dir=tmp_path)


def test_missing_and_empty_places(tmp_path, monkeypatch):
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="cifar100 needs a folder"):
        load("cifar100")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load("cifar100", data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no cifar100 in"):
        load("cifar100", data_dir=tmp_path)


def test_truncated_shard(tmp_path, write):
    write.cifar_parquet(tmp_path)
    file = tmp_path / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-00001-of-00002.parquet is not a whole Parquet file .* truncated"):
        load("cifar100", data_dir=tmp_path)


def test_shard_that_is_damaged_in_the_middle(tmp_path, write):
    write.cifar_parquet(tmp_path)
    file = tmp_path / "train-00000-of-00002.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[4:600] = bytes(596)
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"train-00000-of-00002.parquet"):
        load("cifar100", data_dir=tmp_path)


def test_missing_shard_and_missing_split(tmp_path, write):
    write.cifar_parquet(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00002.parquet is missing, one of 2 shards"):
        load("cifar100", data_dir=tmp_path)
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="contains no train shards of cifar100"):
        load("cifar100", data_dir=tmp_path)


@pytest.mark.parametrize("label", [100, -1])
def test_label_out_of_range_names_file_and_row(tmp_path, write, label):
    write.cifar_parquet(tmp_path)
    images = [write.png(image) for image in write.random_images(3)]
    file = write.shard(tmp_path / "test-00001-of-00002.parquet", images, [0, 1, label])
    with pytest.raises(ValueError, match=rf"{file}, row 2: label {label} is out of range \(0..99\)"):
        load("cifar100", data_dir=tmp_path)


def test_label_out_of_range_in_the_original_versions(tmp_path, write):
    content = write.cifar100_binary(tmp_path / "b")
    raw = bytearray((tmp_path / "b/test.bin").read_bytes())
    raw[7 * 3074 + 1] = 100
    (tmp_path / "b/test.bin").write_bytes(raw)
    with pytest.raises(ValueError, match=r"test.bin, row 7: label 100 is out of range"):
        load("cifar100", data_dir=tmp_path / "b")
    write.cifar100_python(tmp_path / "p")
    images, labels = content["train"]
    labels = labels.tolist()
    labels[5] = 300
    batch = {b"data": images.reshape(-1, 3072), b"fine_labels": labels}
    (tmp_path / "p/train").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=r"train, row 5: label 300 is out of range"):
        load("cifar100", data_dir=tmp_path / "p")


def test_undecodable_images_are_all_counted_and_the_first_named(tmp_path, write):
    write.cifar_parquet(tmp_path)
    images = [write.png(image) for image in write.random_images(200)]
    images[3], images[20] = images[3][:100], b"no image"
    images[40], images[60] = None, write.png(write.random_images(1, size=28)[0])
    write.shard(tmp_path / "test-00000-of-00001.parquet", images, list(range(100)) * 2)
    for number in (0, 1):
        (tmp_path / f"test-0000{number}-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"cifar100: 4 of 1200 images cannot be decoded") as caught:
        load("cifar100", data_dir=tmp_path)
    message = str(caught.value)
    for part in ("parquet, row 3 (", "row 20 (no PNG", "row 40 (it is empty)", "row 60 (it is 28x28"):
        assert part in message


def test_binary_file_that_ends_early(tmp_path, write):
    write.cifar100_binary(tmp_path)
    file = tmp_path / "train.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train.bin, row 999: the record ends early"):
        load("cifar100", data_dir=tmp_path)


def test_batch_that_is_missing(tmp_path, write):
    write.cifar10_python(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="has no data_batch_3"):
        load("cifar10", data_dir=tmp_path)


def test_split_without_samples(tmp_path, write):
    write.cifar100_binary(tmp_path)
    (tmp_path / "test.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="cifar100: the split 'test' has no samples"):
        load("cifar100", data_dir=tmp_path)


def test_class_in_one_split_only(tmp_path, write):
    write.cifar100_binary(tmp_path)
    file = tmp_path / "test.bin"
    records = np.frombuffer(file.read_bytes(), dtype=np.uint8).reshape(-1, 3074)
    file.write_bytes(records[records[:, 1] != 7].tobytes())
    with pytest.raises(ValueError, match=r"class 7 \(fine7\) is in train but not in test"):
        load("cifar100", data_dir=tmp_path)


def test_options_that_make_no_sense(tmp_path):
    for options, message in (
        ({"streaming": True}, "cannot be streamed"),
        ({"image_size": 64}, "is 32x32 and keeps that size"),
        ({"labels": "medium"}, "data.labels takes one of fine, coarse, got 'medium'"),
    ):
        with pytest.raises(ValueError, match=message):
            load("cifar100", data_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="name its folder by data_dir"):
        load("cifar100:x")


@pytest.mark.full
def test_the_real_one(cifar100_dir):
    data = load("cifar100", data_dir=cifar100_dir.parent)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 45000,
        "val": 2500,
        "cal": 2500,
        "test": 10000,
    }
    assert data.classes[0] == "apple"
    assert data.notes == ()
    for split in data.splits.values():
        assert len(set(np.bincount(split.labels, minlength=100))) == 1
    pixels = data.splits["train"].source.pixels[:50000:10] / 255
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), (0.50707516, 0.48654887, 0.44091784), atol=5e-3)
    assert load("cifar100", data_dir=cifar100_dir, per_class=150).splits["train"].ids.shape == (10000,)
