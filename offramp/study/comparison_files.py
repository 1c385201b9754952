"""A comparison as Markdown, CSV, LaTeX and figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from offramp.study.comparison import METRICS, Comparison
from offramp.study.comparison_labels import (
    QUALITY,
    computed_on,
    cost_heading,
    counted,
    difference_cells,
    exit_columns,
    heading,
    mean_cells,
    title,
    trained,
)
from offramp.study.plain_costs import HEAD, cells, csv_cells, csv_rows, quality_cells
from offramp.study.plots import Curve, write_figure
from offramp.study.tables import TableValue, csv_text, latex_text, markdown_text

MARKERS = ("<!-- offramp compare -->", "<!-- end of offramp compare -->")
"""The lines of a document between which `compare --markdown` writes."""


def markdown(comparison: Comparison) -> str:
    """Two tables: means with deviations, and differences to the baseline with their 95 % confidence intervals."""
    columns = comparison.columns
    parts = [
        f"{title(comparison)}:",
        f"{METRICS[comparison.metric]} in percent, mean ± standard deviation over seeds (n - 1).",
        "",
    ]
    rows = [[f"`{row.method}`", counted(row.seeds), *mean_cells(row)] for row in comparison.methods]
    parts.append(markdown_text(["method", "seeds", *columns], rows))
    others = [row for row in comparison.methods if row.difference]
    if others:
        parts += ["", f"Difference to `{comparison.baseline}` on the same seeds, in points [95 % confidence interval:"]
        parts += ["Student's t on the pairs, n - 1; not corrected for the number of comparisons].", ""]
        rows = [[f"`{row.method}`", counted(row.pairs), *difference_cells(row, brackets=True)] for row in others]
        parts.append(markdown_text(["method", "pairs", *columns], rows))
    return "\n".join(parts + _markdown_costs(comparison)) + "\n"


def _markdown_costs(comparison: Comparison) -> list[str]:
    """What early exit costs, and how well exits know when they are right; nothing if the ledger lacks it."""
    parts, costs = [], comparison.costs
    if any(row.seeds for row in costs):
        rows = [[f"`{row.method}`", counted(row.seeds), *cells(row)] for row in costs]
        parts = ["", f"{cost_heading(comparison)}.", "", markdown_text(["method", "seeds", *HEAD], rows)]
    if any(row.auroc for row in costs):
        exits = exit_columns(comparison)
        rows = [[f"`{row.method}`", *quality_cells(row, len(exits))] for row in costs]
        parts += ["", f"{QUALITY}.", "", markdown_text(["method", *exits], rows)]
    return parts


def csv_of(comparisons: Sequence[Comparison]) -> str:
    """One line for each method and column, in shares: mean, deviation, difference to the baseline and its interval."""
    head = ["comparison", "method", "seeds", "metric", "column", "mean", "deviation", "baseline", "pairs", "difference"]
    head += ["low95", "high95", "mean_low95", "mean_high95"]
    return csv_text(head, [line for one in comparisons for line in (*_csv_rows(one), *_csv_costs(one))])


def _csv_costs(comparison: Comparison) -> Iterator[list[TableValue]]:
    """The lines of costs: the interval is that of the mean; the baseline is the plain network."""
    for row in comparison.costs:
        for metric, column, figure in csv_rows(row):
            middle, low, high = csv_cells(figure)
            about: list[TableValue] = [title(comparison), row.method, len(row.seeds), metric, column, middle, None]
            yield [*about, comparison.plain, len(row.seeds), None, None, None, low, high]


def _csv_rows(comparison: Comparison) -> Iterator[list[TableValue]]:
    for row in comparison.methods:
        for place, column in enumerate(comparison.columns):
            interval = row.interval95[place] if row.interval95 else None
            yield [
                title(comparison),
                row.method,
                len(row.seeds),
                comparison.metric,
                column,
                row.mean[place],
                row.deviation[place],
                comparison.baseline,
                len(row.pairs),
                row.difference[place] if row.difference else None,
                *(interval or (None, None)),
                None,
                None,
            ]


def latex_of(comparisons: Sequence[Comparison]) -> str:
    """Tables for each comparison: mean and standard deviation over seeds, in percent; costs; ranking of each exit."""
    tables = []
    for one in comparisons:
        rows = [[row.method, counted(row.seeds), *mean_cells(row)] for row in one.methods]
        tables.append(latex_text(f"{heading(one)}.", ["method", "seeds", *one.columns], rows))
        if any(row.seeds for row in one.costs):
            rows = [[row.method, counted(row.seeds), *cells(row)] for row in one.costs]
            tables.append(latex_text(f"{cost_heading(one)}.", ["method", "seeds", *HEAD], rows))
        if any(row.auroc for row in one.costs):
            exits = exit_columns(one)
            rows = [[row.method, *quality_cells(row, len(exits))] for row in one.costs]
            tables.append(latex_text(f"{QUALITY}.", ["method", *exits], rows))
    return "\n".join(tables)


def draw(comparison: Comparison, path: Path) -> None:
    """Every method's mean of each exit against its cost, with standard deviations over seeds: .svg, .pdf or .png.

    The cost is in millions of multiply-adds per image; the number of the exit if the ledger lacks it.
    """
    exits = len([column for column in comparison.columns if column != "ensemble"])
    priced = all(row.macs for row in comparison.methods)
    curves = []
    for look, row in enumerate(comparison.methods):
        places = [place for place in range(exits) if row.mean[place] is not None]
        costs = [count / 1e6 for count in row.macs] if priced else [place + 1 for place in places]
        points = [(cost, 100 * (row.mean[place] or 0)) for cost, place in zip(costs, places, strict=True)]
        curves.append(Curve(row.method, points, [100 * (row.deviation[place] or 0) for place in places], look, look))
    curves += _at_plain(comparison) if priced else []
    cost = "million multiply-adds per image, up to each exit" if priced else f"exit (1 to {exits})"
    where = f"{comparison.common.get('evaluated')}, {computed_on(comparison)}"
    label = f"{METRICS[comparison.metric]} of the {where}, %"
    write_figure(path, trained(comparison), curves, cost, label)


def _at_plain(comparison: Comparison) -> list[Curve]:
    """Where early exit is as accurate as the plain network on cal: a mark per method, if the ledger has it."""
    curves = []
    for look, (costs, row) in enumerate(zip(comparison.costs, comparison.methods, strict=True)):
        cost = costs.at_accuracy[0] if costs.at_accuracy else None
        if cost is not None and cost.macs is not None and cost.accuracy is not None and len(row.macs) > 1:
            name = f"{row.method}, early exit at the accuracy of plain"
            curves.append(Curve(name, [(cost.macs.mean / 1e6, 100 * cost.accuracy)], [], look, look + 1))
    return curves
