"""Methods compared over seeds: means, deviations and paired differences per exit, as values and as Markdown."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offramp.early_exit.frontier import FrontierPoint
from offramp.study.figures import exit_name
from offramp.study.ledger import Line
from offramp.study.plain_costs import (
    HEAD,
    MethodCosts,
    cells,
    csv_cells,
    csv_rows,
    method_costs,
    plain_networks,
    quality_cells,
)
from offramp.study.plots import Curve, write_figure
from offramp.study.statistics import Difference, Mean, mean, paired
from offramp.study.tables import Cell, csv_text, latex_text
from offramp.train.run_dir import put

BEGIN, END = "<!-- offramp compare -->", "<!-- end of offramp compare -->"
METRICS = {"top1": "accuracy", "top5": "top-5 accuracy"}
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class MethodRow:
    """One method: its seeds, and per column (exits shallow to deep, then the ensemble) shares in [0, 1].

    A network with fewer exits than others has None for the shallow ones; `deviation` (n - 1) and `interval95` are None
    if one seed cannot tell. `difference` and `interval95` compare with the baseline on the seeds `pairs`, which both
    have; all three are empty if there are none. `macs` holds the multiply-adds per image up to each of its own exits,
    empty if the ledger lacks them.
    """

    method: str
    seeds: list[int]
    mean: list[float | None]
    deviation: list[float | None]
    pairs: list[int]
    difference: list[float | None]
    interval95: list[list[float] | None]
    macs: list[int]


@dataclass(frozen=True)
class Comparison:
    """Methods that were trained alike: what they share, the columns' names, and a row each, the baseline first.

    `costs` has a row per method too: what early exit costs at the accuracy of the plain network, which `plain` names.
    `metric` is `top1` or `top5`, the share of samples whose label is among the five largest logits (exits only).
    `apart` holds the options that tell it from other comparisons of the ledger, but for those that every title names.
    """

    common: dict[str, Any]
    columns: list[str]
    baseline: str
    methods: list[MethodRow]
    metric: str = "top1"
    apart: dict[str, Any] = field(default_factory=dict)
    plain: str = ""
    costs: list[MethodCosts] = field(default_factory=list)


def compare(
    lines: Iterable[Line],
    baseline: str = "joint",
    metric: str = "top1",
    plain: tuple[str, FrontierPoint] | None = None,
) -> list[Comparison]:
    """One comparison for each set of runs that differ in nothing but method and seed, in the ledger's order.

    Args:
        metric: `top1` or `top5`, which every line must have then.
        plain: the plain network that all runs are compared with, see `offramp.study.plain_costs.plain_networks`.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line.common, sort_keys=True), []).append(line)
    return _told_apart([_compared(group, baseline, metric, plain) for group in groups.values()])


TITLE = ("net", "net.width", "width", "branch", "data", "per-class", "epochs", "evaluated")
"""Options that every title names."""


def _told_apart(comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons, each with the options in which they differ; a network's own options go with its name."""
    keys = list(dict.fromkeys(key for one in comparisons for key in one.common))
    differing = [key for key in keys if len({json.dumps(one.common.get(key)) for one in comparisons}) > 1]
    prefixes = tuple(f"{kind}." for kind in ("net", "branch", "data") if kind in differing)
    kept = [key for key in differing if key not in TITLE and not (prefixes and key.startswith(prefixes))]
    return [replace(one, apart={key: one.common.get(key) for key in kept if key in one.common}) for one in comparisons]


def _compared(
    lines: Sequence[Line], baseline: str, metric: str, plain_network: tuple[str, FrontierPoint] | None
) -> Comparison:
    exits = max(len(line.accuracy) for line in lines)
    runs: dict[str, dict[int, Values]] = {baseline: {}}
    macs: dict[str, list[int]] = {}
    for line in lines:
        missing = (None,) * (exits - len(line.accuracy))
        measured = (*line.accuracy, line.ensemble) if metric == "top1" else line.top5 or ()
        runs.setdefault(line.method, {})[line.seed] = (*missing, *measured)
        macs[line.method] = list(line.macs or ())
    columns = [*(exit_name(exit, exits) for exit in range(exits)), *(["ensemble"] if metric == "top1" else [])]
    rows = [
        _row(method, by_seed, {} if method == baseline else runs[baseline], macs[method])
        for method, by_seed in runs.items()
        if by_seed
    ]
    plain = plain_networks(lines, plain_network)
    lines_by_method = {row.method: [line for line in lines if line.method == row.method] for row in rows}
    costs = [method_costs(method, members, plain) for method, members in lines_by_method.items()]
    return Comparison(lines[0].common, columns, baseline, rows, metric, plain=plain.name, costs=costs)


def _row(method: str, runs: dict[int, Values], others: dict[int, Values], macs: list[int]) -> MethodRow:
    seeds = sorted(runs)
    shared = [seed for seed in seeds if seed in others]
    means = [_mean([runs[seed][column] for seed in seeds]) for column in range(len(runs[seeds[0]]))]
    differences = [
        _difference([(runs[seed][column], others[seed][column]) for seed in shared])
        for column in range(len(means) if shared else 0)
    ]
    return MethodRow(
        method=method,
        seeds=seeds,
        mean=[one.mean if one else None for one in means],
        deviation=[one.deviation if one else None for one in means],
        pairs=shared,
        difference=[one.mean if one else None for one in differences],
        interval95=[_interval(one) for one in differences],
        macs=macs,
    )


def _interval(difference: Difference | None) -> list[float] | None:
    if difference is None or difference.low is None or difference.high is None:
        return None
    return [difference.low, difference.high]


def _mean(values: Sequence[float | None]) -> Mean | None:
    present = [value for value in values if value is not None]
    return mean(present) if present else None


def _difference(pairs: Sequence[tuple[float | None, float | None]]) -> Difference | None:
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return paired([a for a, _ in both], [b for _, b in both]) if both else None


def title(comparison: Comparison) -> str:
    """What was compared, in a line: network, exits, data, epochs, and on what it was evaluated."""
    return f"{trained(comparison)}; {comparison.common.get('evaluated')}"


def trained(comparison: Comparison) -> str:
    """What all runs share in training: network, exits, data and epochs."""
    config = comparison.common
    width = f" width {config['net.width']}" if config.get("net.width") else ""
    few = f", {config['per-class']} images per class" if config.get("per-class") else ""
    apart = "".join(f", {key} {value}" for key, value in comparison.apart.items())
    return (
        f"{config.get('net')}{width}, {config.get('branch')} exits, {config.get('data')}{few}, "
        f"{config.get('epochs')} epochs{apart}"
    )


def heading(comparison: Comparison) -> str:
    """What the first table shows."""
    metric = METRICS[comparison.metric]
    return f"{title(comparison)}: {metric} in percent, mean ± standard deviation over seeds (n - 1)"


def mean_cells(row: MethodRow) -> list[str]:
    """Percent: `57.03 ± 0.21`, mean and standard deviation; `57.03` of one seed."""
    return [
        "–" if mean is None else f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
        for mean, deviation in zip(row.mean, row.deviation, strict=True)
    ]


def difference_cells(row: MethodRow, brackets: bool) -> list[str]:
    """Points: `+0.42 [-0.10, +0.94]`, or `+0.42 ± 0.52` without brackets; `+0.42` of one seed."""
    return [
        _difference_cell(difference, interval, brackets)
        for difference, interval in zip(row.difference, row.interval95, strict=True)
    ]


def _difference_cell(difference: float | None, interval: list[float] | None, brackets: bool) -> str:
    if difference is None:
        return "–"
    if interval is None:
        return f"{100 * difference:+.2f}"
    low, high = interval
    if brackets:
        return f"{100 * difference:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{100 * difference:+.2f} ± {50 * (high - low):.2f}"


def counted(seeds: Sequence[int]) -> str:
    """How many seeds a figure stands on: `3`, or `one seed`, for which there is no interval."""
    return "one seed" if len(seeds) == 1 else str(len(seeds))


def markdown(comparison: Comparison) -> str:
    """Two tables: means with deviations, and differences to the baseline with their 95 % confidence intervals."""
    columns = comparison.columns
    parts = [
        f"{title(comparison)}:",
        f"{METRICS[comparison.metric]} in percent, mean ± standard deviation over seeds (n - 1).",
        "",
    ]
    parts += _table(
        ["method", "seeds", *columns],
        [[f"`{row.method}`", counted(row.seeds), *mean_cells(row)] for row in comparison.methods],
    )
    others = [row for row in comparison.methods if row.difference]
    if others:
        parts += ["", f"Difference to `{comparison.baseline}` on the same seeds, in points [95 % confidence interval:"]
        parts += ["Student's t on the pairs, n - 1; not corrected for the number of comparisons].", ""]
        parts += _table(
            ["method", "pairs", *columns],
            [[f"`{row.method}`", counted(row.pairs), *difference_cells(row, brackets=True)] for row in others],
        )
    return "\n".join(parts + _markdown_costs(comparison)) + "\n"


def _markdown_costs(comparison: Comparison) -> list[str]:
    """What early exit costs, and how well exits know when they are right; nothing if the ledger lacks it."""
    parts, rows = [], comparison.costs
    if any(row.seeds for row in rows):
        parts = ["", f"{cost_heading(comparison)}.", ""]
        parts += _table(
            ["method", "seeds", *HEAD], [[f"`{row.method}`", counted(row.seeds), *cells(row)] for row in rows]
        )
    if any(row.auroc for row in rows):
        exits = exit_columns(comparison)
        parts += ["", f"{QUALITY}.", ""]
        parts += _table(["method", *exits], [[f"`{row.method}`", *quality_cells(row, len(exits))] for row in rows])
    return parts


def cost_heading(comparison: Comparison) -> str:
    """What the table of costs shows."""
    return (
        "Early exit on test, thresholds fitted on cal: mean operations and milliseconds where accuracy on cal is that "
        "of the plain network, and 0.5 points below it, with points of accuracy on test against it "
        f"({comparison.plain}); area under the budgeted curve; ± half of the 95 % interval over seeds"
    )


QUALITY = (
    "How well the score of each exit ranks images by whether the exit is right (area under the ROC curve) / "
    "calibration error (ECE) in percent, means over seeds"
)


def exit_columns(comparison: Comparison) -> list[str]:
    """The names of the exits among the columns."""
    return [column for column in comparison.columns if column != "ensemble"]


def csv_of(comparisons: Sequence[Comparison]) -> str:
    """One line for each method and column, in shares: mean, deviation, difference to the baseline and its interval."""
    head = ["comparison", "method", "seeds", "metric", "column", "mean", "deviation", "baseline", "pairs", "difference"]
    head += ["low95", "high95", "mean_low95", "mean_high95"]
    return csv_text(head, [line for one in comparisons for line in (*_csv_rows(one), *_csv_costs(one))])


def _csv_costs(comparison: Comparison) -> Iterator[list[Cell]]:
    """The lines of costs: the interval is that of the mean; the baseline is the plain network."""
    for row in comparison.costs:
        for metric, column, figure in csv_rows(row):
            middle, low, high = csv_cells(figure)
            about: list[Cell] = [title(comparison), row.method, len(row.seeds), metric, column, middle, None]
            yield [*about, comparison.plain, len(row.seeds), None, None, None, low, high]


def _csv_rows(comparison: Comparison) -> Iterator[list[Cell]]:
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
    label = f"{METRICS[comparison.metric]} of the {comparison.common.get('evaluated')}, %"
    write_figure(path, trained(comparison), curves, cost, label)


def _at_plain(comparison: Comparison) -> list[Curve]:
    """Where early exit is as accurate as the plain network on cal: a mark per method, if the ledger has it."""
    curves = []
    for look, (costs, row) in enumerate(zip(comparison.costs, comparison.methods, strict=True)):
        at = costs.at[0] if costs.at else None
        if at is not None and at.macs is not None and at.accuracy is not None and len(row.macs) > 1:
            name = f"{row.method}, early exit at the accuracy of plain"
            curves.append(Curve(name, [(at.macs.mean / 1e6, 100 * at.accuracy)], [], look, look + 1))
    return curves


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def around(path: Path, markers: tuple[str, str] = (BEGIN, END)) -> tuple[str, str]:
    """What stands before and after the two markers of a document; nothing where there is none yet.

    Raises:
        ValueError: if the document is there and has not the two markers once, in their order.
    """
    if not path.exists():
        return "", ""
    begin_marker, end_marker = markers
    before, begin, rest = path.read_text(encoding="utf-8").partition(begin_marker)
    _, end, after = rest.partition(end_marker)
    if not (begin and end) or begin_marker in rest or end_marker in before + after:
        raise ValueError(
            f"{path} was not changed: the table is written between a line `{begin_marker}` and a line `{end_marker}`, "
            "once each"
        )
    return before, after


def write_block(path: Path, text: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the text between the two markers of a document, or into a new one; see `around` for what is refused."""
    before, after = around(path, markers)
    block = f"{before}{markers[0]}\n{text}{markers[1]}" + (after or "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, block)
