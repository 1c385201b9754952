"""600 generated images of horizontal or vertical stripes, 8x8 grey."""

import numpy as np

from offramp.data.splits import ArraySource, RawDataSet, Request, consecutive


def build(request: Request, *, noise: int = 40) -> RawDataSet:
    """Two classes of stripes under noise: 500 images to train on, 100 to test.

    Args:
        request: what the user asked for; see `offramp.data.splits.Request`.
        noise: largest value that is added to a pixel.

    Raises:
        ValueError: if an option does not apply to generated images.
    """
    if request.path or request.streaming or request.image_size not in (None, 8):
        raise ValueError("stripes are generated: they take no path, no streaming and no image_size")
    generator = np.random.RandomState(0)
    labels = np.arange(600, dtype=np.int64) % 2
    rows = 120 * (np.arange(8) % 2)[:, None] * np.ones((8, 8))
    clean = np.where(labels[:, None, None] == 0, rows, rows.T)
    pixels = (clean + generator.randint(0, noise + 1, clean.shape)).astype(np.uint8)[:, None]
    source = ArraySource("stripes", ("horizontal", "vertical"), labels, pixels)
    parts = consecutive({"train": 500, "test": 100})
    return RawDataSet(source, parts, mean=(0.3,), std=(0.25,), augmentation="none")
