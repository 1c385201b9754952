"""Numbers as people read them: shares in percent, counts in thousands, millions and thousands of millions."""

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def unit_of(largest: int | float) -> tuple[float, str]:
    """The unit that a count is readable in, and its letter."""
    return next(((size, letter) for size, letter in UNITS if largest >= size), UNITS[-1])


def count(number: int | float | None) -> str:
    """1234567 -> "1.23 M"; a dash for what does not exist."""
    if number is None:
        return "–"
    size, letter = unit_of(number)
    return f"{number / size:,.2f} {letter}" if letter else f"{number:,.0f}"


def percent(share: int | float | None) -> str:
    """0.7712 -> "77.12"; a dash for what does not exist."""
    return "–" if share is None else f"{100 * share:.2f}"
