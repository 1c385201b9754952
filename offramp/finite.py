"""The one rule for numbers that are not finite: in tensors they are an error, in JSON they are null."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def check(tensors: Iterable[tuple[str, Any]], source: object) -> None:
    """Refuse tensors with NaN or infinite values.

    Args:
        tensors: (name, tensor of torch or array of numpy); integers are always finite.
        source: the file, or what else they come from.
    Raises:
        ValueError: naming the source, the first such tensor and how many of its values are not finite.
    """
    import numpy as np  # here, because `offramp --help` does without it

    for name, tensor in tensors:
        finite = np.isfinite(tensor) if isinstance(tensor, np.ndarray) else tensor.isfinite()
        if not bool(finite.all()):
            count = int((~finite).sum())
            values = "value is" if count == 1 else "values are"
            raise ValueError(f"{source}: {count:,} {values} not finite (NaN or infinite) in {name}")


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that JSON lacks (NaN, infinity) are null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(null_if_not_finite(value), indent=indent, allow_nan=False)


def null_if_not_finite(value: Any) -> Any:
    """The same nested values, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: null_if_not_finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [null_if_not_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
