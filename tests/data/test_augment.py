"""Augmentation: what is drawn, that only (seed, epoch, id) decide, and equality with the plain way of doing it."""

import numpy as np
import pytest
import torch

from offramp.data import augment as augmentation
from offramp.data import counter_hash, uniform

MASK = (1 << 64) - 1
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


def pixels(count, size=32):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_the_hash_is_splitmix64():
    state, expected = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]  # the published vector
    for value in expected:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        assert counter_hash._mix(state) == value


def test_tensors_hash_as_python_does():
    ids = torch.tensor([0, 1, 2, 59999, 2**40, -5])
    key = 0
    for part in (7, 3, 11):
        key = counter_hash._mix((key + 0x9E3779B97F4A7C15 + part) & MASK)
    expected = [counter_hash._mix((key + i * 0x9E3779B97F4A7C15) & MASK) for i in ids.tolist()]
    assert [value & MASK for value in counter_hash.hashed(7, 3, ids, 11).tolist()] == expected


def test_uniform_is_uniform_and_differs_between_seed_epoch_draw():
    ids = torch.arange(100_000)
    values = uniform(0, 0, ids, 1)
    assert values.dtype == torch.float32
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 20, 0, 1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001
    for other in (uniform(1, 0, ids, 1), uniform(0, 1, ids, 1), uniform(0, 0, ids, 2)):
        assert abs(torch.corrcoef(torch.stack([values, other]))[0, 1]) < 0.02


def test_values_that_must_never_change():
    # a change here would change every run that is resumed
    values = uniform(5, 2, torch.tensor([0, 1, 49999]), 3)
    assert [round(v * 2**24) for v in values.tolist()] == FIXED
    assert augmentation.order(5, 2, torch.arange(6)).tolist() == FIXED_ORDER


FIXED = [411072, 15429317, 5425248]
FIXED_ORDER = [0, 5, 4, 1, 2, 3]


@pytest.mark.parametrize("kind", [kind for kind in augmentation.AUGMENTATIONS if kind != "resize-crop-flip"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_composition_of_the_batch_gives_the_same_images(kind, channels_last):
    images, ids = pixels(12), torch.arange(100, 112)
    options = {"kind": kind, "seed": 3, "epoch": 4, "channels_last": channels_last, **CIFAR}
    whole = augmentation.augment(images, ids, **options)
    assert whole.dtype == torch.float32
    assert whole.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for part in mixed.split(5):
        again = augmentation.augment(images[part], ids[part], **options)
        if kind == "random-resized-crop":
            torch.testing.assert_close(again, whole[part], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(again, whole[part])
    if kind != "none":
        assert not torch.equal(augmentation.augment(images, ids, **{**options, "epoch": 5}), whole)
        assert not torch.equal(augmentation.augment(images, ids, **{**options, "seed": 5}), whole)


@pytest.mark.parametrize("kind", ["crop-flip", "crop", "flip", "crop-flip-normalised"])
def test_equal_to_padding_and_slicing_one_by_one(kind):
    images, ids = pixels(40), torch.arange(40)
    result = augmentation.augment(images, ids, kind=kind, seed=1, epoch=0, **CIFAR)
    mean, std = (torch.tensor(CIFAR[k])[:, None, None] for k in ("mean", "std"))
    top, left = ((uniform(1, 0, ids, d) * 9).long().tolist() for d in (augmentation.TOP, augmentation.LEFT))
    flip = (uniform(1, 0, ids, augmentation.FLIP) < 0.5).tolist()
    tops = set()
    for i, image in enumerate(images):
        value = image / 255
        if kind.endswith("normalised"):
            value = (value - mean) / std
        if kind.startswith("crop"):
            value = torch.nn.functional.pad(value, (4, 4, 4, 4))[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
            tops.add(top[i])
        if "flip" in kind and flip[i]:
            value = value.flip(2)
        if not kind.endswith("normalised"):
            value = (value - mean) / std
        torch.testing.assert_close(result[i], value, rtol=1e-5, atol=1e-5)
    assert 0 < sum(flip) < 40
    assert not tops or (min(tops), max(tops)) == (0, 8)


def test_small_images_are_padded_less():
    result = augmentation.augment(
        torch.full((500, 1, 8, 8), 255, dtype=torch.uint8),
        torch.arange(500),
        kind="crop",
        seed=0,
        epoch=0,
        mean=(0.0,),
        std=(1.0,),
    )
    assert set(result.sum((1, 2, 3)).round().int().tolist()) == {64, 56, 49}


def test_normalise_in_both_layouts():
    images = pixels(5)
    plain = augmentation.normalise(images, **CIFAR)
    expected = (images.double() / 255 - torch.tensor(CIFAR["mean"])[:, None, None]) / torch.tensor(CIFAR["std"])[
        :, None, None
    ]
    torch.testing.assert_close(plain.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(plain, augmentation.normalise(images, **CIFAR, channels_last=True))


@pytest.mark.parametrize("in_cache", [1, 2 * 32 * 32 * 3, 1 << 18])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mirroring_and_normalising_at_once_is_the_same(monkeypatch, layout, in_cache):
    monkeypatch.setattr(augmentation, "IN_CACHE", in_cache)
    images, flip = pixels(5).contiguous(memory_format=layout), torch.tensor([True, False, False, True, True])
    for last in (False, True):
        apart = augmentation.normalise(augmentation.mirrored(images, flip), **CIFAR, channels_last=last)
        together = augmentation.normalise(images, **CIFAR, channels_last=last, flip=flip)
        assert torch.equal(apart, together) and apart.stride() == together.stride()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 500), (20, 400), (400, 20), (1, 1)])
def test_boxes_lie_within_the_image_and_have_the_promised_area_and_ratio(height, width):
    result = augmentation.boxes(augmentation.box_draws(0, 0, torch.arange(2000)), height, width)
    top, left, high, wide = result.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (high >= 1).all() and (wide >= 1).all()
    assert (top + high <= height).all() and (left + wide <= width).all()
    if height == width == 224:
        area, ratio = high * wide / 224**2, wide / high
        assert 0.075 < area.min() < 0.1 and 0.95 < area.max() <= 1
        assert 0.73 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.36


def test_resizing_the_whole_image_changes_nothing():
    images = augmentation.normalise(pixels(3), **CIFAR)
    box = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(3, 4)
    torch.testing.assert_close(augmentation.resized(images, box), images, rtol=1e-4, atol=1e-4)


def test_resizing_a_quarter_looks_at_that_quarter():
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, :4, 4:] = 1
    assert augmentation.resized(images, torch.tensor([[0.0, 4.0, 4.0, 4.0]])).mean() > 0.9
    assert augmentation.resized(images, torch.tensor([[4.0, 0.0, 4.0, 4.0]])).mean() < 0.1


def test_unknown_kind():
    with pytest.raises(ValueError, match="augmentation 'blur' is unknown: there are none, flip"):
        augmentation.augment(pixels(1), torch.arange(1), kind="blur", seed=0, epoch=0, **CIFAR)


def test_numpy_is_not_needed_for_draws():
    assert np.isclose(float(uniform(0, 0, torch.tensor([3]), 64)), float(uniform(0, 0, torch.arange(9), 64)[3]))
