"""Random images of CIFAR-100's size, to measure speed without the data set: `--data python:random_cifar`."""

import numpy as np

from offramp.data.splits import ArraySource, RawDataSet, Request, take

IMAGES = 60_000


def build(request: Request) -> RawDataSet:
    """50,000 training and 10,000 test images in 100 classes; always the same ones."""
    draw = np.random.default_rng(0)
    labels = np.arange(IMAGES, dtype=np.int64) % 100
    pixels = draw.integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)
    source = ArraySource("random_cifar", tuple(map(str, range(100))), labels, pixels)
    test, train = take(labels, np.arange(IMAGES, dtype=np.int64), 1 / 6, 1, 0)
    mean, std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    return RawDataSet(source, {"train": train, "test": test}, mean=mean, std=std, augmentation="crop-flip")
