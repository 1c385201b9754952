"""Checks that the builders of methods share: one clear sentence for a value that cannot work."""

import math
from collections.abc import Collection, Sequence
from typing import get_args

from offramp.lookup import nearest


def positive(name: str, value: float) -> None:
    """Raise ValueError unless value > 0."""
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name} must be greater than 0 and finite, got {value}")


def not_negative(name: str, value: float) -> None:
    """Raise ValueError unless value >= 0."""
    if not (value >= 0.0 and math.isfinite(value)):
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def choice(name: str, value: str, kind: object) -> None:
    """Raise ValueError unless `value` is one of the words of the Literal `kind`."""
    words = get_args(kind)
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}; {nearest(str(value), words)}")


def has_peers(method: str, exits: int) -> None:
    """Raise ValueError if there is no second exit to learn from."""
    if exits < 2:
        raise ValueError(
            f"{method} lets exits teach each other and needs at least 2 of them, the network has {exits}: "
            "add exits with another branch or net, or train it with the method joint or vanilla"
        )


def exit_numbers(name: str, numbers: Sequence[int]) -> None:
    """Raise ValueError unless the numbers name exits: 1 is the shallowest, -1 the final one, each at most once."""
    if 0 in numbers or len(set(numbers)) != len(numbers):
        raise ValueError(
            f"{name} must name exits once each, 1 the shallowest and -1 the final one, got {list(numbers)}"
        )


def positions(name: str, numbers: Sequence[int], exits: int) -> tuple[int, ...]:
    """0-based positions of exits that are numbered from 1 (shallowest) or from -1 (final), in order.

    Raises:
        ValueError: if the network has no such exit, or one is named twice (as 4 and as -1).
    """
    missing = [number for number in numbers if not 1 <= abs(number) <= exits]
    if missing:
        raise ValueError(f"{name} names exit {missing[0]}, but the network has exits 1 to {exits}")
    indices = sorted(number - 1 if number > 0 else exits + number for number in numbers)
    if _doubled(indices):
        raise ValueError(f"{name} names exit {_doubled(indices)[0] + 1} twice in {list(numbers)} for {exits} exits")
    return tuple(indices)


def _doubled(numbers: Collection[int]) -> list[int]:
    listed = list(numbers)
    return [number for number in dict.fromkeys(listed) if listed.count(number) > 1]
