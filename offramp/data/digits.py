"""The 1,797 handwritten digits of scikit-learn, 8x8 grey: real images with nothing to download."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from offramp.data.splits import ArraySource, RawDataSet, Request, take
from offramp.lookup import with_parameters

TEST_SEED = 0  # which digits are test is part of the data set, not of a run


def build(request: Request) -> RawDataSet:
    """Read the digits (values 0..16 become 0..255): 80 % train and 20 % test, stratified, always the same.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.

    Raises:
        ValueError: for options that make no sense here.
        ImportError: if scikit-learn is not installed.
    """
    if request.path:
        raise ValueError(f"digits come inside scikit-learn and take no path: write digits instead of {request.name}")
    if request.streaming:
        raise ValueError("digits fit memory and do not stream: only folder:PATH does")
    if request.image_size not in (None, 8):
        raise with_parameters(
            ValueError(f"digits are 8x8 and keep that size, so image_size={request.image_size} is not possible"),
            "image_size",
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: pip install 'offramp[demo]'") from error
    bunch = _read(load_digits)
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    test, train = take(labels, np.arange(len(labels), dtype=np.int64), 0.2, 1, TEST_SEED)
    source = ArraySource("digits", tuple("0123456789"), labels, pixels)
    return RawDataSet(source, {"train": train, "test": test}, mean=(0.3052,), std=(0.3758,), augmentation="crop")


@cache
def _read(load_digits: Callable[[], Any]) -> Any:
    """Scikit-learn parses its file of digits in every call; callers must not change the arrays."""
    return load_digits()
