"""What options were called in earlier versions, and those that these did not have: their runs stay usable."""

from collections.abc import Mapping
from typing import Any

RENAMED = {("tap", "own"): "method", ("method.look_ahead", "own"): "optimizer"}
"""{(option, its value as it was written): its value now}."""

ADDED = {"net.parts": [1, 1, 1, 1]}
"""{option that an earlier version did not have: the value with which everything is as it was}."""


def as_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with the values as they are written now."""
    return {key: RENAMED.get((key, value), value) if isinstance(value, str) else value for key, value in values.items()}
