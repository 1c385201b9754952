"""Small data, networks and a silent reporter, for tests."""

from typing import Any

import numpy as np

from offramp.data.splits import ArraySource, DataSet, Split
from offramp.models import resnet
from offramp.net import Backbone


class SilentReporter:
    """A `Reporter` that prints nothing."""

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        """Training begins."""

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        """Losses were read."""

    def epoch_done(self, record: dict[str, Any]) -> None:
        """An epoch ended."""

    def note(self, text: str) -> None:
        """A sentence for the user."""


def patterns(train: int, val: int = 8, classes: int = 4, side: int = 16) -> DataSet:
    """A pattern for each class, under noise, as a data set with the splits train and val.

    Args:
        train: images of train; val: images of val; side: height and width in pixels.
    """
    generator = np.random.default_rng(0)
    labels = np.arange(train + val, dtype=np.int64) % classes
    clean = generator.integers(0, 256, (classes, 3, side, side))
    pixels = (clean[labels] + generator.integers(0, 256, (len(labels), 3, side, side))) // 2
    names = tuple(f"class {label}" for label in range(classes))
    source = ArraySource("patterns", names, labels, pixels.astype(np.uint8))
    order = np.arange(train + val)
    splits = {"train": Split(source, order[:train], "train"), "val": Split(source, order[train:], "val")}
    return DataSet("patterns", splits, source.classes, source.shape, (0.5,) * 3, (0.25,) * 3, "none")


def small_backbone(classes: int = 4) -> Backbone:
    """A ResNet18 with 4 channels for images of 16×16 pixels: four stages."""
    return resnet.build("resnet18", classes=classes, width=4, image_size=16)
