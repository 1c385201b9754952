"""Readable numbers: shares in percent, counts with k, M and G."""

import math

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def unit_of(largest: int | float) -> tuple[float, str]:
    """The unit of a count, and its letter."""
    return next(((size, letter) for size, letter in UNITS if largest >= size), UNITS[-1])


def count(number: int | float | None) -> str:
    """1234567 -> "1.23 M"; a dash for None."""
    if number is None:
        return "–"
    size, letter = unit_of(number)
    return f"{number / size:,.2f} {letter}" if letter else f"{number:,.0f}"


def at_least(number: int | float) -> float:
    """A positive number, rounded up to three digits: a budget of this size that a user types can be met."""
    step = 10.0 ** (math.floor(math.log10(number)) - 2)
    return math.ceil(round(number / step, 6)) * step


def percent(share: int | float | None) -> str:
    """0.7712 -> "77.12"; a dash for None."""
    return "–" if share is None else f"{100 * share:.2f}"


def decimal(number: int | float | None) -> str:
    """0.87654 -> "0.877"; a dash for None."""
    return "–" if number is None else f"{number:.3f}"
