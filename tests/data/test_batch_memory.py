"""Memory of batches is used again, and never while something refers to it."""

import numpy as np
import pytest
import torch

from offramp.data import augment
from offramp.data._batch_memory import KEPT, BatchMemory


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    memory = BatchMemory()
    one = memory.take(4096)
    view = torch.from_numpy(one).view(64, 64)[3:]
    place = one.ctypes.data
    del one
    other = memory.take(4096)
    assert other.ctypes.data != place, "a view of the first one lives"
    view.fill_(1)
    other.fill(2)
    assert view.unique().tolist() == [1]
    del view
    assert memory.take(100).ctypes.data == place
    held = [memory.take(10) for _ in range(20)]
    held.clear()
    assert len(memory.unused) == KEPT


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("last", [True, False])
def test_images_have_the_layout_of_others(last: bool, count: int) -> None:
    one = np.zeros((1, 4, 5, 3), np.uint8).transpose(0, 3, 1, 2) if last else np.zeros((1, 3, 4, 5), np.uint8)
    images = BatchMemory().like(one, count)
    assert images.shape == (count, 3, 4, 5) and images.strides == one.strides


def test_large_batches_are_computed_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (4, 9, 9, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    flip, scale = torch.tensor([True, False, True, False]), ((0.5,) * 3, (0.2,) * 3)
    small = augment.normalise(augment.mirrored(pixels, flip), *scale, channels_last=True)
    monkeypatch.setattr(augment, "LARGE", 0)
    large = augment.normalise(augment.mirrored(pixels, flip), *scale, channels_last=True)
    assert torch.equal(small, large) and small.stride() == large.stride()
