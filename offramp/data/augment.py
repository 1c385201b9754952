"""Augmentation of whole batches on the device, drawn from a counter: (seed, epoch, sample id) decide, nothing else."""

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor

from offramp.data._batch_memory import BatchMemory
from offramp.data.counter_hash import hashed, key, uniform, uniforms
from offramp.data.load import AUGMENTATIONS
from offramp.device_copies import to_device

# Numbers of the draws. Numbers below 64 belong to this file; others (mixup) use numbers from 64 on.
ORDER, TOP, LEFT, FLIP, BALANCE = 0, 1, 2, 3, 4
BOX = 8  # and the 39 that follow: ten tries of (area, ratio, top, left)
TRIES = 10
DRAWS = BOX + 4 * TRIES
"""Draws of this file: 0 to DRAWS - 1."""

IN_CACHE = 1 << 20
"""Numbers that are normalised at a time on a CPU, so that its caches hold them between the operations."""

LARGE = 1 << 24
"""Bytes from which a batch on a CPU has memory of its own."""
_of_numbers, _of_pixels = BatchMemory(), BatchMemory()


@lru_cache(maxsize=4)
def draw_keys(seed: int, epoch: int) -> Int[Tensor, "48"]:
    """The streams of all draws of this file in an epoch, on the CPU: what of `augment` changes with the epoch."""
    return torch.tensor([key(seed, epoch, draw) for draw in range(DRAWS)])


def order(seed: int, epoch: int, ids: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """The ids in the order of this epoch."""
    return ids[torch.argsort(hashed(seed, epoch, ids, ORDER), stable=True)]


def normalise(
    pixels: UInt8[Tensor, "B C H W"],
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool = False,
    flip: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """(pixels / 255 - mean) / std in float32; images with `flip` are mirrored."""
    batch, channels, height, width = pixels.shape
    scale, shift = _constants(tuple(mean), tuple(std), pixels.device)
    if flip is not None and (pixels.is_cuda or not channels_last):
        pixels, flip = mirrored(pixels, flip), None
    if not channels_last:
        return pixels.contiguous().to(torch.float32).mul_(scale.view(1, -1, 1, 1)).add_(shift.view(1, -1, 1, 1))
    last = pixels.permute(0, 2, 3, 1)
    if not last.is_contiguous():
        last = torch.stack(pixels.unbind(1), -1)
    # Rows of width * channels numbers: an inner loop over three channels would take three times as long on a CPU.
    scale, shift = scale.repeat(width), shift.repeat(width)
    rows = _rows(batch, height, width * channels, pixels.device)
    at_once = max(1, batch if pixels.is_cuda else IN_CACHE // max(1, rows[:1].numel()))
    for first in range(0, batch, at_once):
        some = slice(first, first + at_once)
        _convert(last[some], rows[some], None if flip is None else flip[some])
        rows[some].mul_(scale).add_(shift)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _convert(pixels: UInt8[Tensor, "B H W C"], rows: Float[Tensor, "B H _"], flip: Bool[Tensor, "B"] | None) -> None:
    """Write the pixels as numbers, those of images with `flip` mirrored, without a copy of the others."""
    if flip is None:
        rows.copy_(pixels.flatten(2))
        return
    for image, target, turn in zip(pixels, rows, flip.tolist(), strict=True):
        target.copy_((image.flip(1) if turn else image).flatten(1))


def _rows(batch: int, height: int, width: int, device: torch.device) -> Float[Tensor, "B H W"]:
    """Uninitialised numbers."""
    size = 4 * batch * height * width
    if device.type != "cpu" or size < LARGE:
        return torch.empty(batch, height, width, device=device)
    return torch.from_numpy(_of_numbers.take(size).view(np.float32)).view(batch, height, width)


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift on the device: made once, because every copy to a GPU would stop the loop until it is done.

    They stay, because a CUDA graph that has read them reads them at the same place again.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    return scale, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)


def crop_flip(
    images: Num[Tensor, "B C H W"],
    top: Int[Tensor, "B"] | None,
    left: Int[Tensor, "B"] | None,
    flip: Bool[Tensor, "B"] | None,
    padding: int,
) -> Num[Tensor, "B C H W"]:
    """Pad with zeros, cut the window at (top, left) out of each image, mirror those with `flip`.

    `top` and `left` lie in 0..2*padding; None cuts (or mirrors) nothing.
    """
    batch, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, height)
    columns = torch.arange(width, device=device).expand(batch, width)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    if top is not None and left is not None:
        images = torch.nn.functional.pad(images, (padding, padding, padding, padding))
        rows, columns = rows + top[:, None], columns + left[:, None]
    places = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    places = places.view(batch, 1, height * width).expand(batch, channels, height * width)
    return images.flatten(2).gather(2, places).view(batch, channels, height, width)


def mirrored(images: Num[Tensor, "B C H W"], flip: Bool[Tensor, "B"]) -> Num[Tensor, "B C H W"]:
    """The images, those with `flip` mirrored; the memory layout is kept."""
    if images.is_cuda:
        return torch.where(flip[:, None, None, None], images.flip(3), images)
    large = images.dtype == torch.uint8 and images.numel() >= LARGE
    out = torch.from_numpy(_of_pixels.like(images.numpy(), len(images))) if large else torch.empty_like(images)
    for image, target, turn in zip(images, out, flip.tolist(), strict=True):
        target.copy_(image.flip(2) if turn else image)
    return out


def boxes(
    draws: Float[Tensor, "B 10 4"],
    height: int | Int[Tensor, "B"],
    width: int | Int[Tensor, "B"],
    area: tuple[float, float] = (0.08, 1.0),
) -> Float[Tensor, "B 4"]:
    """(top, left, height, width) of a random part of each image, in pixels: Inception's random-resized crop.

    Area uniform in `area`, aspect ratio log-uniform in 3/4..4/3; the first of ten tries that fits, else the largest
    centred part with an allowed ratio (as in torchvision.transforms.RandomResizedCrop; methods.md calls it 224+flip).
    """
    height, width = (
        side if isinstance(side, Tensor) else torch.full((len(draws),), side, device=draws.device)  # without a copy
        for side in (height, width)
    )
    size = (area[0] + draws[..., 0] * (area[1] - area[0])) * (height * width)[:, None]
    ratio = torch.exp((2 * draws[..., 1] - 1) * math.log(4 / 3))
    wide, high = torch.sqrt(size * ratio).round(), torch.sqrt(size / ratio).round()
    fits = (wide <= width[:, None]) & (high <= height[:, None]) & (wide >= 1) & (high >= 1)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)

    def pick(values: Tensor) -> Tensor:
        return values.gather(1, first)[:, 0]

    w, h = pick(wide), pick(high)
    top = (pick(draws[..., 2]) * (height - h + 1)).floor()
    left = (pick(draws[..., 3]) * (width - w + 1)).floor()
    full_w = torch.minimum(width, (height.double() * 4 / 3).round().long())
    full_h = torch.minimum(height, (width.double() * 4 / 3).round().long())
    spare = ((height - full_h) // 2, (width - full_w) // 2, full_h, full_w)
    pairs = zip((top, left, h, w), spare, strict=True)
    return torch.stack([torch.where(fits.any(1), value, other.to(value.dtype)) for value, other in pairs], 1)


def box_draws(seed: int, epoch: int, ids: Int[Tensor, "B"]) -> Float[Tensor, "B 10 4"]:
    """The numbers that `boxes` needs for these samples."""
    return _box_draws(to_device(draw_keys(seed, epoch), ids.device), ids)


def _box_draws(keys: Int[Tensor, "48"], ids: Int[Tensor, "B"]) -> Float[Tensor, "B 10 4"]:
    return uniforms(keys[BOX:], ids).view(-1, TRIES, 4)


def window_draws(seed: int, epoch: int, ids: Int[Tensor, "B"]) -> Float[Tensor, "B 2"]:
    """Where `resize-crop-flip` cuts: the shares of the free height and width above and left of each crop."""
    return torch.stack([uniform(seed, epoch, ids, draw) for draw in (TOP, LEFT)], 1)


def flips(seed: int, epoch: int, ids: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
    """Which samples are mirrored by the augmentations that mirror a half."""
    return uniform(seed, epoch, ids, FLIP) < 0.5


def resized(images: Float[Tensor, "B C H W"], box: Float[Tensor, "B 4"]) -> Float[Tensor, "B C H W"]:
    """The boxes (top, left, height, width) of each image, resized bilinearly to the full size."""
    height, width = images.shape[2:]
    top, left, high, wide = box.unbind(1)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = wide / width, (2 * left + wide) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = high / height, (2 * top + high) / height - 1
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augment(
    pixels: UInt8[Tensor, "B C H W"],
    ids: Int[Tensor, "B"],
    *,
    kind: str,
    seed: int = 0,
    epoch: int = 0,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool = False,
    cropped: bool = False,
    keys: Int[Tensor, "48"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Augmented and normalised images in float32.

    Args:
        pixels: as the source has them, 0..255.
        ids: decide, with seed and epoch, everything that is random.
        kind: one of `AUGMENTATIONS`. Crops pad by an eighth of the height (4 of 32) with zeros: of the pixels, or
            with `-normalised` of the normalised images. The draws are equal on every device; resized crops are too,
            to rounding, everything else to the last bit.
        seed: of the run.
        epoch: number of the epoch.
        mean: one per channel, for pixels in 0..1.
        std: the same.
        channels_last: memory layout of the answer.
        cropped: the random crops were cut from the originals and mirrored already; only normalise.
        keys: `draw_keys(seed, epoch)` on the device, in place of both; a CUDA graph reads them again every time.

    Raises:
        ValueError: if `kind` is unknown, or `resize-crop-flip` of images that are not `cropped`.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation {kind!r} is unknown: there are {', '.join(AUGMENTATIONS)}")
    if cropped:
        return normalise(pixels, mean, std, channels_last)
    top = left = flip = None
    padding = max(1, pixels.shape[2] // 8)
    keys = to_device(draw_keys(seed, epoch), ids.device) if keys is None else keys
    drawn = uniforms(keys[TOP : FLIP + 1], ids)
    if kind.startswith("crop"):
        top, left = (drawn[:, :2] * (2 * padding + 1)).to(torch.int64).unbind(1)
    if kind == "resize-crop-flip":
        raise ValueError(f"{kind} is cut from the originals: take a source that streams its images")
    if "flip" in kind or kind == "random-resized-crop":
        flip = drawn[:, FLIP - TOP] < 0.5
    if top is None:
        images = normalise(pixels, mean, std, channels_last, flip)
        if kind == "random-resized-crop" and len(ids):
            images = resized(images, boxes(_box_draws(keys, ids), pixels.shape[2], pixels.shape[3]))
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images
    if kind.endswith("-normalised"):
        images = crop_flip(normalise(pixels, mean, std), top, left, flip, padding)
    else:
        images = normalise(crop_flip(pixels, top, left, flip, padding), mean, std, channels_last)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images
