"""The loader: order, resuming in mid-epoch, processes, the last batch, streaming equal to resident."""

import threading
from collections import deque
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.data import Loader, load
from offramp.data.augment import normalise
from offramp.data.load import AUGMENTATIONS
from offramp.data.resident import does_not_fit
from offramp.data.splits import ArraySource, DataSet, Split
from offramp.data.streaming import Streaming
from offramp.images import resize_shorter_side


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def train(data, **options):
    return Loader(data.splits["train"], data, **{"batch_size": 100, "augment": True, "seed": 3, **options})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_sees_every_sample_once_in_a_new_order(digits):
    batches = train(digits)
    assert len(batches) == 13
    orders = [torch.cat([batch.ids for batch in batches.epoch(epoch)]) for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert np.array_equal(np.sort(orders[0].numpy()), digits.splits["train"].ids)
    for batch in batches.epoch(0):
        assert batch.inputs.shape[1:] == (1, 8, 8)
        source = digits.splits["train"].source
        assert np.array_equal(batch.labels.numpy(), source.labels[batch.ids.numpy()])


@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_is_prepared_by_the_keys_of_its_epoch(digits, balanced):
    """The keys stay where they are: what a CUDA graph reads there draws the crops of the next epoch."""
    loader = train(replace(digits, augmentation="crop-flip"), balanced=balanced)
    expected = [next(loader.epoch(number)) for number in (0, 1)]
    place = loader.keys.data_ptr()
    raw = [next(loader.raw(0))]
    assert raw[0].inputs.dtype == torch.uint8 and same(loader.to_inputs(raw[0]), expected[0])
    raw.append(next(loader.raw(1)))
    assert same(loader.to_inputs(raw[1]), expected[1]) and loader.keys.data_ptr() == place
    assert not torch.equal(loader.to_inputs(raw[0]).inputs, expected[0].inputs)  # now with the keys of epoch 1


def test_starting_in_mid_epoch_gives_the_same_batches(digits):
    whole = list(train(digits).epoch(4))
    resumed = list(train(digits).epoch(4, start=5))
    assert len(resumed) == len(whole) - 5
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    assert list(train(digits).epoch(4, start=13)) == []


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_every_batch(digits, world):
    whole = list(train(digits).epoch(0))
    loaders = [train(digits, rank=rank, world=world) for rank in range(world)]
    parts = [list(loader.epoch(0)) for loader in loaders]
    for step, (batch, *shares) in enumerate(zip(whole, *parts, strict=True)):
        for index in range(3):
            assert torch.equal(torch.cat([share[index] for share in shares]), batch[index])
        sizes = [len(share.ids) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        weights = [loader.weight(step) for loader in loaders]
        assert weights == pytest.approx([size * world / len(batch.ids) for size in sizes])


def test_evaluation_keeps_order_and_pixels_and_drops_nothing(digits):
    split = digits.splits["test"]
    batches = Loader(split, digits, batch_size=358, augment=False, seed=0)
    result = list(batches.epoch(0))
    assert [len(batch.ids) for batch in result] == [358, 1] and len(batches) == 2
    assert np.array_equal(torch.cat([batch.ids for batch in result]).numpy(), split.indices)
    pixels = (torch.cat([b.inputs for b in result]) * digits.std[0] + digits.mean[0]) * 255
    np.testing.assert_allclose(pixels.numpy(), split.source.batch(split.indices), atol=1e-3)
    assert all(same(a, b) for a, b in zip(result, batches.epoch(7), strict=True))


@pytest.mark.parametrize(
    ("batch_size", "world", "steps"),
    [(1294, 1, 1), (1293, 1, 2), (1295, 1, 1), (1, 1, 1295), (1292, 2, 1), (1291, 2, 2)],
)
def test_only_a_last_batch_that_leaves_one_sample_is_dropped(digits, batch_size, world, steps):
    batches = train(digits, batch_size=batch_size, world=world)
    assert len(batches) == steps == len(list(batches.epoch(0)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_in_evaluation_a_process_may_get_an_empty_slice(digits, folders, channels_last):
    for data in (digits, *folders):
        split = data.splits["test"]
        options = {"batch_size": len(split) - 1, "augment": False, "seed": 0, "channels_last": channels_last}
        shares = [list(Loader(split, data, rank=rank, world=2, **options).epoch(0)) for rank in (0, 1)]
        assert [len(share[-1].ids) for share in shares] == [0, 1]
        assert shares[0][-1].inputs.shape == (0, *data.shape)


@pytest.mark.parametrize("kind", [kind for kind in AUGMENTATIONS if kind != "resize-crop-flip"])
def test_every_augmentation_takes_empty_and_single_slices(digits, kind):
    data = replace(digits, augmentation=kind)
    split = replace(data.splits["train"], indices=data.splits["train"].indices[:5])
    for rank in range(4):
        batches = Loader(split, data, batch_size=4, augment=True, shuffle=False, seed=0, rank=rank, world=4)
        assert [len(batch.inputs) for batch in batches.epoch(0)] == [1, int(rank == 3)]


def test_shuffle_without_augmentation(digits):
    plain = train(digits, augment=False)
    mixed = train(digits, augment=False, shuffle=True)
    assert torch.equal(next(plain.epoch(0)).ids, torch.from_numpy(digits.splits["train"].indices[:100]))
    assert not torch.equal(next(mixed.epoch(0)).ids, next(plain.epoch(0)).ids)


def test_channels_last(digits):
    one, other = next(train(digits).epoch(0)), next(train(digits, channels_last=True).epoch(0))
    assert other.inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.inputs, other.inputs)


def test_what_cannot_work_is_refused(digits):
    with pytest.raises(ValueError, match="batch_size=2 does not give each of 3 processes a sample"):
        train(digits, batch_size=2, world=3)
    with pytest.raises(ValueError, match=r"rank must be in 0..1 for world=2, got 2"):
        train(digits, rank=2, world=2)
    tiny = load("digits", per_class=1, per_class_includes_holdout=False)
    with pytest.raises(ValueError, match=r"digits: 10 samples in train do not make one batch for 6 process"):
        train(tiny, world=6)


@pytest.fixture
def folders(tmp_path, write):
    root = write.image_folder(tmp_path / "pets", {"train/a": 20, "train/b": 20, "test/a": 3, "test/b": 3}, (90, 70))
    options = {"image_size": 24, "holdout": 0.2}
    return load(f"folder:{root}", **options), load(f"folder:{root}", streaming=True, **options)


@pytest.mark.parametrize("augment", [True, False])
def test_streaming_gives_the_batches_that_resident_gives(folders, augment):
    resident, streaming = folders
    assert resident.augmentation == streaming.augmentation == "crop-flip"
    options = {"batch_size": 7, "augment": augment, "seed": 1, "world": 2, "rank": 1}
    one, other = (Loader(data.splits["train"], data, **options) for data in folders)
    assert all(same(a, b) for a, b in zip(one.epoch(1, 1), other.epoch(1, 1), strict=True))


def test_streaming_does_not_depend_on_threads_nor_on_where_it_starts(tmp_path, write):
    root = write.image_folder(tmp_path / "pets", {"train/a": 20, "train/b": 20, "test/a": 3, "test/b": 3}, (200, 150))
    data = load(f"folder:{root}", streaming=True, image_size=96)
    assert data.augmentation == "random-resized-crop"
    batches = [Loader(data.splits["train"], data, batch_size=8, augment=True, seed=0) for _ in range(2)]
    batches[1].store.workers = 1
    whole, again = (list(each.epoch(2)) for each in batches)
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))
    assert all(same(a, b) for a, b in zip(whole[3:], batches[0].epoch(2, 3), strict=True))


def test_resize_crop_flip_is_a_random_window_of_the_resized_original(tmp_path, write):
    root = write.image_folder(tmp_path / "pets", {"train/a": 12, "train/b": 12, "test/a": 3, "test/b": 3}, (90, 70))
    options = {"image_size": 32, "holdout": 0, "streaming": True, "augmentation": "resize-crop-flip"}
    data = load(f"folder:{root}", **options, resize=40, normalise="cifar10")
    loader = Loader(data.splits["train"], data, batch_size=8, augment=True, seed=3)
    batch = next(loader.epoch(2))
    plain, source = replace(data, augmentation="none"), data.splits["train"].source
    seen = set()
    for inputs, row in zip(batch.inputs, batch.ids.tolist(), strict=True):
        whole = resize_shorter_side(Image.open(source.files[row]).convert("RGB"), 40, "bilinear")
        wide = torch.from_numpy(np.asarray(whole).transpose(2, 0, 1).copy())[None]
        scaled = normalise(wide, plain.mean, plain.std)[0]
        places = [
            (top, left, turned)
            for top in range(whole.height - 31)
            for left in range(whole.width - 31)
            for turned, image in ((False, inputs), (True, inputs.flip(2)))
            if torch.equal(scaled[:, top : top + 32, left : left + 32], image)
        ]
        assert places, row
        seen.add(places[0])
    assert len({place[0] for place in seen}) > 2 and len({place[1] for place in seen}) > 2
    assert {place[2] for place in seen} == {False, True}
    assert same(batch, next(loader.epoch(2))) and not same(batch, next(loader.epoch(3)))


def test_resize_crop_flip_is_refused_where_it_cannot_be_had(tmp_path, write):
    root = write.image_folder(tmp_path / "pets", {"train/a": 12, "train/b": 12, "test/a": 3, "test/b": 3}, (90, 70))
    with pytest.raises(ValueError, match=r"resize-crop-flip crops the originals, but digits keeps images .* streaming"):
        load("digits", augmentation="resize-crop-flip")
    with pytest.raises(ValueError, match="set streaming=true"):
        load(f"folder:{root}", augmentation="resize-crop-flip", image_size=96)
    with pytest.raises(ValueError, match=r"more than the 32 pixels .* data.resize=37"):
        load(f"folder:{root}", augmentation="resize-crop-flip", image_size=32, streaming=True)


def test_leaving_a_streaming_epoch_early_ends_its_threads(folders):
    import threading

    _, data = folders
    running = Loader(data.splits["train"], data, batch_size=4, augment=True, seed=0).epoch(0)
    next(running)
    assert any(thread.name.startswith("offramp-decode") for thread in threading.enumerate())
    running.close()
    assert not any(thread.name.startswith("offramp-decode") for thread in threading.enumerate())


def test_streaming_leaves_the_number_of_threads(folders, monkeypatch):
    used = []
    monkeypatch.setattr(Loader, "_inputs", lambda *about: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for data in folders:
            next(train(data, batch_size=8).epoch(0))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert used == [2, 1], "one thread while others decode"


def test_an_image_that_breaks_later_is_named(folders):
    _, data = folders
    source = data.splits["train"].source
    source.files[int(data.splits["train"].ids[0])].write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"\.png cannot be decoded"):
        list(Loader(data.splits["train"], data, batch_size=4, augment=True, seed=0).epoch(0))


def test_bounded_memory(folders):
    _, data = folders
    batches = Loader(data.splits["train"], data, batch_size=2, augment=False, seed=0)
    seen = []
    decode = batches.store._decode
    batches.store._decode = lambda part, *rest: seen.extend(part.tolist()) or decode(part, *rest)
    next(batches.epoch(0))
    assert len(set(seen)) <= 2 * 3


def test_a_label_that_names_no_class_is_named_before_training():
    labels = np.array([0, 1, 2, 1], np.int64)
    source = ArraySource("toy", ("a", "b"), labels, np.zeros((4, 1, 2, 2), np.uint8))
    split = Split(source, np.array([3, 2, 1], np.int64), "train")
    data = DataSet("toy", {"train": split}, source.classes, source.shape, (0.5,), (0.5,), "none")
    with pytest.raises(ValueError, match=r"toy: labels must be in 0\.\.\.1, .* but the label of row 2 of train is 2"):
        Loader(split, data, batch_size=2, augment=False, seed=0)


def test_images_stay_on_the_host_where_a_gpu_has_no_room(digits, monkeypatch):
    split, gpu = digits.splits["train"], torch.device("cuda")
    bytes_ = len(split) * 64
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * bytes_, 10 * bytes_))
    assert does_not_fit(split, gpu) == "" and does_not_fit(split, torch.device("cpu")) == ""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * bytes_ - 1, 10 * bytes_))
    says = "the images of train (0.0 GiB) do not fit beside the network in the 0.0 GiB that are free on the GPU"
    assert does_not_fit(split, gpu).startswith(says)


def test_images_from_the_host_are_those_of_the_device(digits):
    loader = Loader(digits.splits["train"], digits, batch_size=64, augment=True, seed=3)
    host = Loader(digits.splits["train"], digits, batch_size=64, augment=True, seed=3, store=loader._store(True))
    assert isinstance(host.store, Streaming)
    for one, other in zip(islice(loader.epoch(1), 3), host.epoch(1)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_worker_computes_in_its_own_thread(digits):
    """Even small operations of torch waited for a second thread, which others kept from a core."""
    seen = []

    class Source(ArraySource):
        def batch(self, indices):
            seen.append((threading.current_thread(), torch.get_num_threads()))
            return super().batch(indices)

    source = Source(**vars(digits.splits["train"].source))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        streamed = Streaming(Split(source, np.arange(40), "train"), torch.device("cpu"))
        deque(streamed.batches(torch.arange(40), [(0, 20), (20, 40)], 0, 0), maxlen=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for thread, threads in seen if thread is not threading.current_thread()} == {1}
