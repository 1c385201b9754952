"""Any Parquet shards: columns, classes, splits by name, streaming, and every promised refusal."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offramp.data import _photographs, load
from offramp.data.loading import Loader
from offramp.data.split_record import record_of, restored


@pytest.fixture
def pictures(write):
    return [write.png(image) for image in write.random_images(40, 28)]


def two(write, root, pictures, **options):
    write.shard(root / "train.parquet", pictures[:30], [0, 1, 2] * 10, label="label", image="image", **options)
    write.shard(root / "test.parquet", pictures[30:], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], label="label", image="image")


@pytest.mark.parametrize("struct", [True, False])
def test_a_folder_with_columns_that_are_found(tmp_path, write, pictures, struct):
    two(write, tmp_path, pictures, struct=struct)
    data = load(f"parquet:{tmp_path}", holdout=0.2)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "val": 3, "cal": 3, "test": 10}
    assert data.shape == (3, 32, 32)
    assert data.classes == ("0", "1", "2")
    assert load(f"parquet:{tmp_path}", image_size=28).splits["train"].source.batch(np.arange(40)).tolist() == (
        write.random_images(40, 28).tolist()
    )


@pytest.mark.parametrize("layout", ["data/train-00000-of-00001", "train/0000", "default/train/part.0", "a_train"])
def test_splits_by_the_names_that_are_usual(tmp_path, write, pictures, layout):
    for part in ("train", "test"):
        path = tmp_path / f"{layout.replace('train', part)}.parquet"
        write.shard(path, pictures, [0, 1] * 20, label="label")
    assert {k: len(v) for k, v in load(f"parquet:{tmp_path}", holdout=0).splits.items()} == {"train": 40, "test": 40}


def test_shards_whose_names_say_more_than_their_split_are_said(tmp_path, write, pictures):
    """Their images became part of train and test without a word."""
    for name in ("train-00000-of-00002", "train-00001-of-00002", "train_extra-0", "test/a", "test/b", "val/train_1"):
        write.shard(tmp_path / f"{name}.parquet", pictures, [0, 1] * 20, label="label")
    notes = load(f"parquet:{tmp_path}", holdout=0).notes[:2]
    assert notes == (
        f"{tmp_path}/val/train_1.parquet is used for train, the last split in its name",
        f"{tmp_path}: train has shards of several names (train, train_extra): all of them are used",
    )
    for name in ("train_extra-0", "val/train_1"):
        (tmp_path / f"{name}.parquet").unlink()
    assert not any("used" in note for note in load(f"parquet:{tmp_path}", holdout=0).notes)


def test_one_file_is_cut_80_10_10(tmp_path, write, pictures):
    file = write.shard(tmp_path / "pets.parquet", pictures, ["dog", "cat"] * 20, label="animal")
    data = load(f"parquet:{file}")
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 32, "val": 2, "cal": 2, "test": 4}
    assert data.classes == ("cat", "dog")
    assert data.splits["train"].source.labels[:2].tolist() == [1, 0]


def test_names_of_the_hub(tmp_path, write, pictures):
    two(write, tmp_path, pictures, names=["x", "y", "z"])
    assert load(f"parquet:{tmp_path}", holdout=0).classes == ("x", "y", "z")


def test_labels_with_gaps_are_names(tmp_path, write, pictures):
    file = write.shard(tmp_path / "a.parquet", pictures, [5, 9] * 20, label="label")
    data = load(f"parquet:{file}", holdout=0)
    assert data.classes == ("5", "9")
    assert data.splits["train"].source.labels[:2].tolist() == [0, 1]


def assert_refused(path, message, error=ValueError, **options):
    with pytest.raises(error, match=message):
        load(f"parquet:{path}", **options)


def test_columns_that_cannot_be_found(tmp_path, write, pictures):
    file = tmp_path / "a.parquet"
    columns = {"p": pa.array(pictures), "q": pa.array(pictures), "x": [0] * 40, "y": [1] * 40, "z": [0.5] * 40}
    pq.write_table(pa.table(columns), file)
    assert_refused(file, r"a.parquet: which column holds the images\? Say data.image_column, one of p, q, x, y, z")
    assert_refused(file, r"which column holds the labels\? Say data.label_column", image_column="p")
    assert_refused(file, r"has no column 'r' \(data.image_column\)", **{"image-column": "r"})  # as it is typed
    assert_refused(file, r"has no column 'r' \(data.image_column\): it has p, q, x, y, z", image_column="r")
    assert_refused(file, r"column 'x' \(data.image_column\) holds int64, not image bytes", image_column="x")
    assert_refused(
        file, r"column 'z' \(data.label_column\) holds double, not integers", image_column="p", label_column="z"
    )
    assert_refused(file, "has one class only", image_column="p", label_column="x")


def test_bad_labels_name_file_and_row(tmp_path, write, pictures):
    file = write.shard(tmp_path / "a.parquet", pictures, [0, 1] * 18 + [0, 1, None, 1], label="label")
    assert_refused(file, rf"{file}, row 38: the label \(label\) is missing")
    write.shard(file, pictures, [0, 1] * 18 + [0, -1, 0, 1], label="label")
    assert_refused(file, rf"{file}, row 37: label -1 is out of range \(0 and more\)")
    write.shard(file, pictures, [0, 1] * 18 + [0, 3, 0, 1], label="label", names=["a", "b", "c"])
    assert_refused(file, r"row 37: label 3 is out of range \(0..2\)")


def test_a_path_beside_the_bytes_is_never_followed(tmp_path, write, pictures):
    pictures[7] = None
    file = write.shard(tmp_path / "a.parquet", pictures, [0, 1] * 20, label="label")
    assert_refused(file, r"1 of 40 images cannot be decoded: .*row 7 \(it is empty\)")


def test_places(tmp_path, write, pictures):
    assert_refused(tmp_path / "x", "x does not exist", FileNotFoundError)
    assert_refused(tmp_path, r"contains no \*.parquet files", FileNotFoundError)
    two(write, tmp_path, pictures)
    write.shard(tmp_path / "more.parquet", pictures, [0] * 40, label="label")
    assert_refused(tmp_path, "more.parquet does not say which split it belongs to")
    (tmp_path / "more.parquet").write_bytes(b"PAR1")
    assert_refused(tmp_path / "more.parquet", "is not a whole Parquet file")


def test_split_without_samples(tmp_path, write, pictures):
    two(write, tmp_path, pictures)
    (tmp_path / "test.parquet").unlink()
    write.shard(tmp_path / "test.parquet", [b""][:0], [0][:0], label="label", image="image", names=["a", "b", "c"])
    assert_refused(tmp_path, "the split 'test' has no samples")


def table(path, pictures, labels, kind=None):
    """A file with the columns image and label, whatever their types."""
    pq.write_table(pa.table({"image": pictures, "label": labels if kind is None else labels.cast(kind)}), path)
    return path


def hub_shard(write, path, pictures, numbers, names):
    write.shard(path, pictures, numbers, label="label", image="image", names=names)


def test_class_names_in_another_order_are_matched_by_name(tmp_path, write, pictures):
    hub_shard(write, tmp_path / "train.parquet", pictures, [0, 1, 2, 0] * 10, ["cat", "dog", "ewe"])
    hub_shard(write, tmp_path / "test.parquet", pictures[:30], [2, 0, 1] * 10, ["dog", "ewe", "cat"])
    data = load(f"parquet:{tmp_path}", holdout=0)
    assert data.classes == ("cat", "dog", "ewe")
    assert data.splits["test"].labels[:3].tolist() == [0, 1, 2]
    assert data.notes[0] == (
        f"{tmp_path}/test.parquet: its class names are in another order than in {tmp_path}/train.parquet; labels are "
        "matched by name"
    )
    hub_shard(write, tmp_path / "test.parquet", pictures[:30], [2, 0, 1] * 10, ["dog", "owl", "cat"])
    assert_refused(tmp_path, r"test.parquet names the class 'owl' in its labels, which .*train.parquet does not have")
    hub_shard(write, tmp_path / "test.parquet", pictures[:30], [2, 0, 1] * 10, ["dog", "dog", "cat"])
    assert_refused(tmp_path, r"test.parquet gives two classes in 'label' the name 'dog': give them different names")


def test_one_shard_of_a_split_may_number_its_classes_in_another_order_or_unicode_form(tmp_path, write, pictures):
    names = ["caf\u00e9", "dog", "ewe"]
    for split, count in (("train", 40), ("test", 30)):
        for shard, (numbers, ours) in enumerate((([0, 1, 2], names), ([2, 0, 1], ["dog", "ewe", "cafe\u0301"]))):
            file = tmp_path / f"{split}-0000{shard}-of-00002.parquet"
            hub_shard(write, file, pictures[: count // 2], (numbers * 10)[: count // 2], ours)
    data = load(f"parquet:{tmp_path}", holdout=0)
    assert data.classes == tuple(names)
    assert data.splits["test"].labels.tolist() == (([0, 1, 2] * 10)[:15]) * 2


def test_labels_of_another_kind_name_the_file(tmp_path, pictures):
    table(tmp_path / "train.parquet", pictures, [0, 1] * 20)
    table(tmp_path / "test.parquet", pictures, ["0", "1"] * 20)
    assert_refused(
        tmp_path, r"test.parquet: its labels \(label\) are strings, but those of .*train.parquet are numbers: store"
    )


def test_classes_that_look_alike_are_said(tmp_path, pictures):
    file = table(tmp_path / "a.parquet", pictures, ["cat", "Cat ", "dog", "dog"] * 10)
    assert load(f"parquet:{file}", holdout=0).notes == (
        f"parquet:{file}: 'Cat ' and 'cat' are different classes, though their names differ in case or spaces only",
    )


def test_labels_that_are_fractions_name_the_column(tmp_path, pictures):
    file = table(tmp_path / "a.parquet", pictures, [0.0, 1.0] * 20)
    assert_refused(
        file, r"column 'label' \(data.label_column\) holds double, not integers, strings, categories or booleans"
    )


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array(["dog", "cat"] * 20).dictionary_encode(), ("cat", "dog")),
        (pa.array([7, 3] * 20).dictionary_encode(), ("3", "7")),
        (pa.array([True, False] * 20), ("False", "True")),
        (pa.array(["dog", "cat"] * 20, pa.string_view()), ("cat", "dog")),
        (pa.array([9_000_000_000, 5] * 20), ("5", "9000000000")),
        (pa.array([2**64 - 1, 5] * 20, pa.uint64()), ("5", "18446744073709551615")),
        (pa.array(["caf\u00e9", "b", "cafe\u0301", "b"] * 10), ("b", "caf\u00e9")),
    ],
    ids=["categories", "numbers as categories", "booleans", "views", "huge", "unsigned", "unicode"],
)
def test_every_kind_of_label(tmp_path, pictures, labels, classes):
    file = table(tmp_path / "a.parquet", pa.array(pictures, pa.binary_view()), labels)
    data = load(f"parquet:{file}", holdout=0)
    assert data.classes == classes and data.splits["train"].source.labels[:2].tolist() == [1, 0]


@pytest.mark.parametrize("augment", [True, False])
def test_streaming_gives_the_batches_that_memory_gives(tmp_path, write, pictures, augment):
    two(write, tmp_path / "set", pictures)
    common = {"image_size": 24, "holdout": 0.2, "data_dir": tmp_path}
    memory, stream = (load("parquet:set", streaming=streaming, **common) for streaming in (False, True))
    assert stream.splits["train"].source.streaming and not memory.splits["train"].source.streaming
    options = {"batch_size": 7, "augment": augment, "seed": 1, "world": 2, "rank": 1}
    batches = [Loader(data.splits["train"], data, **options).epoch(1, 1) for data in (memory, stream)]
    for one, other in zip(*batches, strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    for name, split in memory.splits.items():
        assert np.array_equal(split.ids, stream.splits[name].ids)


def test_a_run_keeps_its_split_between_memory_and_streaming_and_when_shards_are_divided_anew(tmp_path, write, pictures):
    two(write, tmp_path / "set", pictures)
    memory, stream = (
        load(f"parquet:{tmp_path / 'set'}", streaming=streaming, holdout=0.2) for streaming in (False, True)
    )
    assert restored(stream, record_of(memory), "run", False) is stream
    (tmp_path / "set/test.parquet").unlink()
    labels = [0, 1, 2] * 3 + [0]
    for shard, rows in enumerate((slice(0, 4), slice(4, 10))):
        file = tmp_path / f"set/test-0000{shard}-of-00002.parquet"
        write.shard(file, pictures[30:][rows], labels[rows], label="label", image="image")
    again = load(f"parquet:{tmp_path / 'set'}", streaming=True, holdout=0.2)
    assert restored(again, record_of(stream), "run", False) is again
    (tmp_path / "set/test-00000-of-00002.parquet").unlink()
    (tmp_path / "set/test-00001-of-00002.parquet").rename(tmp_path / "set/test.parquet")
    fewer = load(f"parquet:{tmp_path / 'set'}", streaming=True, holdout=0.2)
    assert restored(fewer, record_of(stream), "run", False).notes[-1].endswith("are gone: 4 of 10 test")


def test_what_would_be_too_large_when_decoded_streams(tmp_path, write, pictures, monkeypatch):
    two(write, tmp_path, pictures)
    monkeypatch.setattr(_photographs, "MOST_DECODED", 40 * 3 * 32**2 - 1)
    data = load(f"parquet:{tmp_path}", image_size=32)
    assert data.splits["train"].source.streaming
    assert data.notes[0] == f"parquet:{tmp_path} is streamed: its decoded images would be 0 GiB"
    monkeypatch.undo()
    assert not load(f"parquet:{tmp_path}", image_size=32).splits["train"].source.streaming


def test_a_disk_without_space_is_said(tmp_path, write, pictures):
    two(write, tmp_path, pictures)
    (tmp_path / "cache").write_text("a file")
    cache = {"streaming": True, "cache_dir": tmp_path / "cache"}
    assert_refused(tmp_path, "its images are copied once into .*cache, which has no space for 0.0 GB", OSError, **cache)


def test_shards_of_another_schema_are_named(tmp_path, write, pictures):
    write.shard(tmp_path / "train.parquet", pictures[:30], [0, 1, 2] * 10, label="label", image="image")
    write.shard(tmp_path / "test.parquet", pictures[30:39], [0, 1, 2] * 3, label="y", image="image")
    told = r"test.parquet has another schema than .*train.parquet: it has no column 'label', but image, y; store them"
    assert_refused(tmp_path, told)
    assert_refused(tmp_path, told, streaming=True)
    pq.write_table(pa.table({"image": [1, 2, 3], "label": [0, 1, 2]}), tmp_path / "test.parquet")
    assert_refused(
        tmp_path, r"test.parquet has another .*: its column 'image' holds int64, not image bytes; store them alike"
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_images_are_named_and_left_out_on_request(tmp_path, write, pictures, streaming):
    pictures[7], pictures[12] = pictures[7][:60], None
    two(write, tmp_path, pictures)
    options = {"streaming": streaming, "holdout": 0}
    named = (
        r"2 of 40 images cannot be decoded: .*train.parquet, row 7 .*, .*row 12 \(it is empty\); .* by skip_damaged$"
    )
    assert_refused(tmp_path, named, **options)
    for _ in range(2):  # the second time from the cache
        data = load(f"parquet:{tmp_path}", skip_damaged=True, **options)
        assert data.notes[0].startswith(
            f"parquet:{tmp_path}: without 2 of 40 images, which cannot be decoded: {tmp_path}/train"
        )
        assert sorted({*range(30)} - {*data.splits["train"].ids.tolist()}) == [7, 12] and len(data.notes) == 1
    assert_refused(tmp_path, named, **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_cannot_be_read_are_named_and_left_out_on_request(tmp_path, write, pictures, streaming):
    two(write, tmp_path, pictures)
    file = tmp_path / "train.parquet"
    whole = bytearray(file.read_bytes())
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(0)  # of 16 rows each
    whole[chunk.dictionary_page_offset : chunk.dictionary_page_offset + 40] = bytes(40)
    file.write_bytes(whole)
    options = {"streaming": streaming, "holdout": 0}
    says = rf"{file}, rows 16 to 29: 'image' cannot be read \(.*, or leave these rows out by skip_damaged$"
    assert_refused(tmp_path, says, **options)
    data = load(f"parquet:{tmp_path}", skip_damaged=True, **options)
    assert data.splits["train"].ids.tolist() == [*range(16)]
    assert data.notes[0].startswith(
        f"parquet:{tmp_path}: without 14 of 40 images, which cannot be decoded: {file}, row 16 ("
    )
    write.shard(tmp_path / "train-00000-of-00002.parquet", pictures[:30], [0, 1, 2] * 10, label="label", image="image")
    file.rename(tmp_path / "train-00001-of-00002.parquet").write_bytes(b"PAR1")
    assert_refused(
        tmp_path, r"00001-of-00002.parquet is not a whole Parquet file .* leave it out by skip_damaged", **options
    )
    data = load(f"parquet:{tmp_path}", skip_damaged=True, **options)
    assert len(data.splits["train"]) == 30 and "00001-of-00002.parquet was left out, all of it" in data.notes[0]


def test_only_sources_of_many_files_skip():
    with pytest.raises(ValueError, match="skip_damaged is for folder:, parquet:, tar:, hub:, not for digits: leave it"):
        load("digits", skip_damaged=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_shards_decide_nothing(tmp_path, pictures, streaming):
    """Whatever their types are; the size of the images was guessed from the first shard, though it had none."""
    table(tmp_path / "train-1.parquet", pictures[:20], [0, 1] * 10)
    table(tmp_path / "test.parquet", pictures[20:24], [0, 1] * 2)
    pq.write_table(pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}), tmp_path / "train-0.parquet")
    data = load(f"parquet:{tmp_path}", streaming=streaming, holdout=0)
    assert data.shape == (3, 32, 32) and len(data.splits["train"]) == 20
    assert data.notes[0] == f"{tmp_path / 'train-0.parquet'} is empty"
    for file in tmp_path.glob("t*-1.parquet"):
        pq.write_table(pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}), file)
    assert_refused(tmp_path, "the split 'train' has no samples")
    pq.write_table(pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}), tmp_path / "test.parquet")
    assert_refused(tmp_path, "no shard has rows that could be read")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_test_split_without_labels_is_not_used(tmp_path, pictures, streaming):
    """As the Hub has ImageNet."""
    for split, rows, labels in (("train", 20, [0, 1]), ("val", 8, [0, 1]), ("test", 4, [-1, -1])):
        table(tmp_path / f"{split}.parquet", pictures[:rows], labels * (rows // 2))
    data = load(f"parquet:{tmp_path}", streaming=streaming, holdout=0.2)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 2, "cal": 2, "test": 8}
    assert data.notes[0].endswith("the test split has no labels (all are -1) and is not used; val is reported on")
    table(tmp_path / "test.parquet", pictures[:4], [-1, 0, 1, 0])
    assert_refused(tmp_path, "test.parquet, row 0: label -1 is out of range", streaming=streaming)


def test_a_link_that_leads_nowhere_is_no_missing_shard(tmp_path, write, pictures):
    two(write, tmp_path, pictures)
    (tmp_path / "train-2.parquet").symlink_to(tmp_path / "gone")
    assert_refused(tmp_path, "train-2.parquet is a link that leads nowhere: restore the file, or remove the link")


def test_a_split_whose_only_shard_is_damaged_is_not_cut_from_another(tmp_path, write, pictures):
    two(write, tmp_path, pictures)
    (tmp_path / "val.parquet").write_bytes(b"PAR1")
    assert_refused(tmp_path, "the split 'val' has no samples", skip_damaged=True)
