"""A document of a reproduction: conditions, verdicts, tables and figures, between two markers of a Markdown file."""

from collections.abc import Sequence
from pathlib import Path

from offramp.papers.claims import ClaimResult
from offramp.papers.render import UNITS, claims_markdown, figure_markdown, protocol_line, table_grid, table_notes
from offramp.papers.reproduce import Reproduction
from offramp.papers.values import TableResult
from offramp.study.marked_block import around, write_block
from offramp.study.tables import markdown_text

MARKERS = "<!-- offramp reproduce -->", "<!-- end of offramp reproduce -->"


def write_document(result: Reproduction, path: Path) -> None:
    """Write a reproduction into a document, between its markers if it is there.

    Raises:
        ValueError: if the document is there and lacks the markers.
    """
    write_block(path, document(result), MARKERS)


def check_document(path: Path) -> None:
    """Refuse a document that is there and lacks the markers.

    Raises:
        ValueError: saying where the text goes.
    """
    around(path, MARKERS)


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
    return "\n\n".join(part for part in parts if part) + "\n"


def _conditions(result: Reproduction) -> str:
    if not result.seeds:
        return "Nothing has been run yet."
    seeds = ", ".join(map(str, result.seeds))
    return (
        f"Seeds {seeds}; {result.hours:.1f} hours of training on {' and '.join(result.hardware)}; offramp "
        f"{result.version}. Every run is evaluated on test once, at its last epoch."
    )


def _verdicts(claims: Sequence[ClaimResult]) -> str:
    counts = {verdict: sum(one.verdict == verdict for one in claims) for verdict in ORDER}
    return "; ".join(f"{count} {SAID[verdict]}" for verdict, count in counts.items()) + "."


ORDER = ("holds", "does not hold", "undecided", "not run")
SAID = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "are undecided: the interval of a difference contains zero, or there are fewer than two seeds",
    "not run": "are not run",
}


def _not_run(claims: Sequence[ClaimResult]) -> str:
    texts = [f"- {one.text}" for one in claims if one.verdict == "not run"]
    return "\n".join(["Not run:", "", *texts]) if texts else ""


def _table(table: TableResult) -> list[str]:
    parts = [f"### {table.name}", f"{table.title}; {UNITS[table.metric]}.", markdown_text(*table_grid(table))]
    return [*parts, *table_notes(table)]
