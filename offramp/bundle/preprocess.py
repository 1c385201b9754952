"""From an image file to the network's input, exactly as in training's evaluation. Runs without torch."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.images import INTERPOLATIONS, Fit, Pixels, decode, resize_and_crop

LARGEST = 8192  # side in pixels that a bundle may ask for


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes an input of the network.

    Attributes:
        channels: 3 for RGB, 1 for grey.
        size: side of the square that the network takes, in pixels.
        resize: what the shorter side becomes before the centre square of `size` is cropped, in pixels.
        mean: one per channel, for pixels in 0..1.
        std: the same.
        interpolation: how the image is resized, one of `offramp.images.INTERPOLATIONS`.

    Raises:
        ValueError: if a number is out of range.
    """

    channels: int
    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"preprocessing reads images with 1 or 3 channels, not {self.channels}")
        if not 0 < self.size <= self.resize <= LARGEST:
            raise ValueError(
                f"preprocessing: size {self.size} and resize {self.resize} must be positive, resize at least as large, "
                f"and both at most {LARGEST}"
            )
        if not len(self.mean) == len(self.std) == self.channels or not all(np.isfinite(self.mean + self.std)):
            raise ValueError(f"preprocessing needs {self.channels} finite means and standard deviations")
        if min(self.std) <= 0:
            raise ValueError(f"preprocessing needs positive standard deviations, got {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"preprocessing: interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """One input's (channels, height, width)."""
        return self.channels, self.size, self.size

    def read(self, image: bytes | Path | Image.Image) -> Pixels:
        """The pixels (channels, size, size) of one image file; see `offramp.images.decode`.

        Raises:
            offramp.images.BadImage: whatever is wrong with it.
        """
        fit = Fit(self.size, self.resize, self.interpolation)
        return decode(image, lambda picture: resize_and_crop(picture, fit), self.channels)[0]

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(pixels / 255 - mean) / std for a batch (B, channels, size, size), bit by bit as training computes it."""
        scale, shift = _constants(self.mean, self.std)
        inputs: NDArray[np.float32] = pixels.astype(np.float32, order="C")  # decoded images have their channels last
        inputs *= scale
        inputs += shift
        return inputs


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and shift of every channel, (C, 1, 1)."""
    scale = np.array([1 / (255 * s) for s in std], np.float32)
    shift = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    return scale[:, None, None], shift[:, None, None]
