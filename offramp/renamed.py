"""Values of options that have another name now: configurations of earlier versions are read as those of this one."""

from collections.abc import Mapping
from typing import Any

RENAMED = {("tap", "own"): "method", ("method.look_ahead", "own"): "optimizer"}
"""{(option, its value as it was written): its value now}."""


def as_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with the values as they are written now."""
    return {key: RENAMED.get((key, value), value) if isinstance(value, str) else value for key, value in values.items()}
