"""Tables as CSV that spreadsheets open safely, as Markdown and as LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from offramp.text import csv_cell, printable

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}

TableValue = str | int | float | None


def csv_text(head: Sequence[str], rows: Iterable[Sequence[TableValue]]) -> str:
    """Comma-separated values; None is an empty cell.

    Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers are left as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[csv_cell(cell) for cell in row] for row in (head, *rows)])
    return text.getvalue()


def markdown_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def latex_text(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A `table` of the package booktabs: the first column to the left, the others to the right."""
    lines = [f"    {' & '.join(map(latex, row))} \\\\" for row in rows]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{latex(caption)}}}",
            f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"    \toprule",
            f"    {' & '.join(map(latex, head))} \\\\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex(text: str) -> str:
    """The text with LaTeX's special characters escaped."""
    marks = re.compile("|".join(map(re.escape, LATEX)))
    return marks.sub(lambda match: LATEX[match[0]], printable(text))
