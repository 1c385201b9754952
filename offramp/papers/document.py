"""A document of a reproduction: conditions, verdicts, tables and figures, between two markers of a Markdown file."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from textwrap import TextWrapper

from offramp.papers.claims import ClaimResult
from offramp.papers.render import UNITS, claims_markdown, figure_markdown, protocol_line, table_grid, table_notes
from offramp.papers.reproduce import Reproduction
from offramp.papers.values import TableResult
from offramp.study.marked_section import split_at_markers, write_section
from offramp.study.tables import markdown_text

WIDTH = 120
"""Characters of a line."""
MARKERS = "<!-- offramp reproduce -->", "<!-- end of offramp reproduce -->"


def write_document(result: Reproduction, path: Path) -> None:
    """Write a reproduction into a new document, or between the markers of an existing one.

    Raises:
        ValueError: if the document exists without the markers.
    """
    write_section(path, document(result), MARKERS)


def check_document(path: Path) -> None:
    """Refuse a document that exists without the markers.

    Raises:
        ValueError: naming the markers.
    """
    split_at_markers(path, MARKERS)


def document(result: Reproduction) -> str:
    """The text between the markers."""
    parts = [
        "## Conditions",
        protocol_line(result),
        _conditions(result),
        "## Claims",
        _verdicts(result.claims),
        claims_markdown([one for one in result.claims if one.verdict != "not run"]),
        _not_run(result.claims),
        "## Tables",
        *(part for table in result.tables for part in _table(table)),
        "## Figures",
        *(part for one in result.figures for part in (f"### {one.name}", *figure_markdown(one))),
    ]
    return "\n\n".join(wrapped(part) for part in parts if part) + "\n"


def wrapped(part: str) -> str:
    """Markdown with lines of at most `WIDTH` characters; headings and tables stay as they are."""
    if part.startswith(("|", "#")):
        return part
    return "\n".join(chain.from_iterable(map(_lines, part.splitlines())))


def _lines(line: str) -> list[str]:
    indent = "  " if line.startswith("- ") else ""
    wrapper = TextWrapper(WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(line) or [""]


def _conditions(result: Reproduction) -> str:
    if not result.seeds:
        return "Nothing has been measured yet."
    seeds = ", ".join(map(str, result.seeds))
    return (
        f"Seeds {seeds}; {result.hours:.1f} hours of training on {' and '.join(result.hardware)}; offramp "
        f"{result.version}. Every run is evaluated once on test, after its last epoch."
    )


def _verdicts(claims: Sequence[ClaimResult]) -> str:
    counts = {verdict: sum(one.verdict == verdict for one in claims) for verdict in ORDER}
    return "; ".join(f"{count} {VERBS[verdict]}" for verdict, count in counts.items()) + "."


ORDER = ("holds", "does not hold", "undecided", "not run")
VERBS = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "are undecided (the interval of a difference contains zero, or there are fewer than two seeds)",
    "not run": "have not been run",
}


def _not_run(claims: Sequence[ClaimResult]) -> str:
    texts = [f"- {one.text}" for one in claims if one.verdict == "not run"]
    return "\n".join(["Not run:", "", *texts]) if texts else ""


def _table(table: TableResult) -> list[str]:
    parts = [f"### {table.name}", f"{table.title}; {UNITS[table.metric]}.", markdown_text(*table_grid(table))]
    return [*parts, *table_notes(table)]
