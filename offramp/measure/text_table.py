"""Tables as plain text, for terminals, notebooks and log files alike."""

from collections.abc import Sequence
from textwrap import fill

WIDTH = 80
"""Columns of running text: those of a terminal."""


def prose(text: str) -> str:
    """Running text in lines of at most `WIDTH` columns; paths and other long words stay whole."""
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def text_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title, a line of column names and the rows: the first column left-aligned, the others right-aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join([title, *("  ".join(line).rstrip() for line in aligned)])
