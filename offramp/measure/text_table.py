"""Tables as plain text, for terminals, notebooks and log files alike."""

from collections.abc import Sequence


def text_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title, a line of column names and the rows: the first column left-aligned, the others right-aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join([title, *("  ".join(line).rstrip() for line in aligned)])
