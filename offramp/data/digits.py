"""The 1,797 handwritten digits of scikit-learn, 8x8 grey: real images with nothing to download."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from offramp.data.splits import ArraySource, RawDataSet, Request, take
from offramp.lookup import with_parameters

TEST_SEED = 0  # which digits are test is part of the data set, not of a run


def build(request: Request) -> RawDataSet:
    """Read the digits (values 0..16 become 0..255): 80 % train and 20 % test, stratified, always the same.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.

    Raises:
        ValueError: for options that digits does not have.
        ImportError: if scikit-learn is not installed.
    """
    if request.path:
        raise ValueError(f"digits come inside scikit-learn and take no path: write digits instead of {request.name}")
    if request.streaming:
        raise ValueError("digits cannot be streamed: they are held in memory")
    if request.image_size not in (None, 8):
        raise with_parameters(
            ValueError(f"digits are 8x8 and keep that size, so image_size={request.image_size} is not possible"),
            "image_size",
        )
    table = _read()
    pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    test, train = take(labels, np.arange(len(labels), dtype=np.int64), 0.2, 1, TEST_SEED)
    source = ArraySource("digits", tuple("0123456789"), labels, pixels)
    return RawDataSet(source, {"train": train, "test": test}, mean=(0.3052,), std=(0.3758,), augmentation="crop")


@cache
def _read() -> Float[np.ndarray[Any, Any], "1797 65"]:
    """64 values and the label of every digit, from the file in scikit-learn, whose import takes a second or two.

    Callers must not change the array.
    """
    spec = find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets/data/digits.csv.gz" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise ImportError("digits come with scikit-learn: pip install 'offramp[demo]'")
    return np.loadtxt(file, delimiter=",")
