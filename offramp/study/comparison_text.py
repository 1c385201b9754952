"""A comparison as text: tables and notes."""

from typing import NamedTuple

from offramp.measure.text_table import text_table
from offramp.study.comparison import METRICS, Comparison
from offramp.study.comparison_labels import computed_on, counted, difference_cells, exit_columns, mean_cells, title
from offramp.study.plain_costs import narrow_rows, quality_cells

WIDEST = 11
"""Columns that a table of five exits leaves for a method's name in a terminal of 80."""


class TextTable(NamedTuple):
    """One table: its title, the names of its columns, and its rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


def comparison_text(comparison: Comparison) -> str:
    """What is compared, and all tables and notes about it."""
    parts = (part if isinstance(part, str) else text_table(*part) for part in comparison_parts(comparison))
    return f"{title(comparison)}\n" + "\n\n".join(parts)


def comparison_parts(comparison: Comparison) -> list[TextTable | str]:
    """Means over seeds, differences to the baseline, and what shortened names of methods mean."""
    names, legend = _names([row.method for row in comparison.methods])
    columns = ["", "n", *comparison.columns]
    rows = [[names[row.method], counted(row.seeds), *mean_cells(row)] for row in comparison.methods]
    parts: list[TextTable | str] = [
        TextTable(f"{METRICS[comparison.metric]} %, mean ± standard deviation over seeds", columns, rows)
    ]
    others = [row for row in comparison.methods if row.difference]
    if others:
        rows = [[names[row.method], counted(row.pairs), *difference_cells(row, brackets=False)] for row in others]
        head = f"difference to {comparison.baseline} with the same seeds, points ± half of the 95 % interval"
        parts.append(TextTable(head, columns, rows))
    elif len(comparison.methods) > 1:
        parts.append(f"no differences: no method has a seed in common with the baseline {comparison.baseline}")
    parts += _costs(comparison, names)
    if legend:
        parts.append("\n".join(legend))
    return parts


def _costs(comparison: Comparison, names: dict[str, str]) -> list[TextTable | str]:
    """What early exit costs, and how well scores rank right and wrong predictions; nothing if the ledger lacks it."""
    parts: list[TextTable | str] = []
    if any(row.seeds for row in comparison.costs):
        rows = [
            [names[row.method] if not number else "", str(len(row.seeds)) if not number else "", *texts]
            for row in comparison.costs
            for number, texts in enumerate(narrow_rows(row))
        ]
        head = "early exit as accurate as plain on cal: cost on test, ± half of 95 % interval"
        ms = f"ms {computed_on(comparison)}"
        parts += [TextTable(head, ["", "n", "", "MACs", ms, "points"], rows), comparison.plain]
    if any(row.auroc for row in comparison.costs):
        exits = exit_columns(comparison)
        rows = [[names[row.method], *quality_cells(row, len(exits))] for row in comparison.costs]
        parts.append(TextTable("AUROC of each exit's score / ECE %", ["", *exits], rows))
    return parts


def _names(methods: list[str]) -> tuple[dict[str, str], list[str]]:
    """What each method is called in a narrow table, and what the numbers in these names mean."""
    long = [method for method in methods if len(method) > WIDEST]
    short = {method: f"{method.partition('(')[0]} ({number})" for number, method in enumerate(long, 1)}
    return {method: short.get(method, method) for method in methods}, [f"{short[one]}: {one}" for one in long]
