"""A comparison as text, for a terminal of 80 columns and for notebooks."""

from offramp.measure.text_table import text_table
from offramp.study.comparison import METRICS, Comparison, counted, difference_cells, mean_cells, title

WIDEST = 11
"""Columns that a table of five exits leaves for a method's name in a terminal of 80."""


def comparison_text(comparison: Comparison) -> str:
    """Means over seeds, differences to the baseline, and what shortened names of methods stand for."""
    names, legend = _names([row.method for row in comparison.methods])
    rows = [[names[row.method], counted(row.seeds), *mean_cells(row)] for row in comparison.methods]
    head = f"{METRICS[comparison.metric]} %, mean ± standard deviation over seeds"
    parts = [f"{title(comparison)}\n{text_table(head, ['', 'n', *comparison.columns], rows)}"]
    others = [row for row in comparison.methods if row.difference]
    if others:
        rows = [[names[row.method], counted(row.pairs), *difference_cells(row, brackets=False)] for row in others]
        head = f"difference to {comparison.baseline} with the same seeds, points ± half of the 95 % interval"
        parts.append(text_table(head, ["", "n", *comparison.columns], rows))
    elif len(comparison.methods) > 1:
        parts.append(f"no differences: no method has a seed in common with {comparison.baseline} (--baseline NAME)")
    if legend:
        parts.append("\n".join(legend))
    return "\n\n".join(parts)


def _names(methods: list[str]) -> tuple[dict[str, str], list[str]]:
    """What each method is called in a narrow table, and what the numbers in these names stand for."""
    long = [method for method in methods if len(method) > WIDEST]
    short = {method: f"{method.partition('(')[0]} ({number})" for number, method in enumerate(long, 1)}
    return {method: short.get(method, method) for method in methods}, [f"{short[one]}: {one}" for one in long]
