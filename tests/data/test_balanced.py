"""Class-balanced epochs: equally many images of every class, the same after a resume and on several processes."""

import numpy as np
import torch

from offramp.data.augment import crop_flip
from offramp.data.balanced import balanced_order
from offramp.data.loading import Loader
from offramp.data.splits import ArraySource, DataSet, Split

LABELS = np.array([0] * 30 + [1] * 9 + [2] * 2)


def unbalanced() -> DataSet:
    pixels = np.arange(len(LABELS) * 16, dtype=np.int64).reshape(-1, 1, 4, 4).astype(np.uint8)
    source = ArraySource("toy", tuple("abc"), LABELS, pixels)
    rows = np.arange(1, len(LABELS), dtype=np.int64)
    return DataSet("toy", {"train": Split(source, rows, "train")}, source.classes, (1, 4, 4), (0.5,), (0.25,), "flip")


def loader(**options: int) -> Loader:
    data = unbalanced()
    return Loader(data.splits["train"], data, batch_size=8, augment=True, seed=3, balanced=True, **options)


def test_every_class_comes_equally_often_and_every_image_before_one_comes_again() -> None:
    ids, labels, size = torch.arange(1, 41), torch.from_numpy(LABELS)[1:], len(LABELS)
    orders = [balanced_order(0, epoch, ids, labels, size) for epoch in range(3)]
    assert torch.equal(orders[0], balanced_order(0, 0, ids, labels, size))
    for epoch, drawn in enumerate(orders):
        known = drawn % size
        counts = np.bincount(LABELS[known.numpy()])
        assert len(drawn) == 40 and sorted(counts) == [13, 13, 14] and counts[(2 - epoch + 1) % 3] >= 13
        assert set(range(30, 41)) <= set(known.tolist())  # all of the small classes
        assert len(set(drawn.tolist())) == 40  # which come again as other entries
    assert set(orders[0].tolist()) != set(orders[1].tolist())  # another part of the large class


def test_batches_have_the_images_of_their_ids_and_repeated_images_are_augmented_anew() -> None:
    batches = list(loader().epoch(0))
    assert len(batches) == len(loader()) == 5
    source = unbalanced().splits["train"].source
    flipped: dict[int, set[bool]] = {}
    for batch in batches:
        assert batch.labels.tolist() == LABELS[batch.ids.numpy()].tolist()
        for image, number in zip(batch.inputs, batch.ids.tolist(), strict=True):
            pixels = (image * 0.25 + 0.5) * 255
            plain = torch.from_numpy(source.pixels[number])
            mirrored = crop_flip(plain[None], None, None, torch.tensor([True]), 1)[0]
            is_plain = torch.allclose(pixels, plain.float(), atol=0.01)
            assert is_plain or torch.allclose(pixels, mirrored.float(), atol=0.01)
            flipped.setdefault(number, set()).add(is_plain)
    assert flipped[39] == flipped[40] == {True, False}


def test_a_resume_and_several_processes_get_the_same_batches() -> None:
    whole = list(loader().epoch(2))
    again = list(loader().epoch(2, start=2))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(whole[2:], again, strict=True))
    parts = [list(loader(rank=rank, world=2).epoch(2)) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch.ids, torch.cat([share.ids for share in shares]))
        assert torch.equal(batch.inputs, torch.cat([share.inputs for share in shares]))
