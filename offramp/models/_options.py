"""Checks that every family's `build` makes of its options."""

from collections.abc import Iterable

from offramp.lookup import ParameterError, unknown

LARGEST = 1_000_000
"""No width, side or count of blocks is as large."""


def check(name: str, nets: Iterable[str], **counts: int) -> None:
    """Refuse a name that the family does not build, and counts below 1 or above `LARGEST`.

    Raises:
        ValueError: naming the nearest net, or the option and its value.
    """
    if name not in nets:
        raise unknown("net", name, nets)
    for option, value in counts.items():
        if value < 1:
            raise ParameterError(f"{name} needs {option} of at least 1, got {value}")
        if value > LARGEST:
            raise ParameterError(f"{name} takes {option} of at most {LARGEST:,}, got {value}")
