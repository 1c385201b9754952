"""Curves as text: every exit on all samples, and some of the budgeted batches."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.measure.plain_network import plain_note
from offramp.measure.text_table import text_table
from offramp.measure.units import count, percent
from offramp.study.curve_tables import NAMES, cell
from offramp.study.figures import exit_name

if TYPE_CHECKING:
    from offramp.runs.curves import CurveComparison, Curves


def curves_text(result: "Curves", key: str) -> str:
    """One run: anytime and budgeted; `key` is that of the accuracy in a point."""
    head = [f"{NAMES[key]} %", result.cost]
    samples = f"{result.samples['test']:,} samples, on {result.provenance['device']}"
    exits = len(result.anytime)
    rows = [[exit_name(exit, exits), *_point(point, key)] for exit, point in enumerate(result.anytime)]
    if result.baseline:
        rows.append(["baseline", *_point(result.baseline, key)])
    note = f"baseline {result.baseline['source']}" if result.baseline else plain_note([p[key] for p in result.anytime])
    anytime = text_table(f"{result.run}: every exit on test, {samples}", ["exit", *head], rows) + f"\n{note}"
    if result.refused:
        return _with_files(f"{anytime}\n\n{result.refused}", result)
    rows = [[f"{point['q']:.2f}", *_point(point, key)] for point in result.budgeted if round(point["q"] * 20) % 4 == 0]
    budgeted = text_table(f"{result.run}: budgeted batch on test, {samples}", ["q", *head], rows)
    explained = "q: share of the samples at each exit / share at the exit before (MSDNet)"
    return _with_files(f"{anytime}\n\n{budgeted}\n{explained}", result)


def comparison_text(result: "CurveComparison", key: str) -> str:
    """Groups of runs: anytime, mean and standard deviation over seeds; the best of several models at each budget."""
    rows = [
        [group.name if not exit else "", exit_name(exit, len(group.anytime)), cell(point, key), count(point["cost"])]
        for group in result.groups
        for exit, point in enumerate(group.anytime)
    ]
    baselines = [group.baseline for group in result.groups if group.baseline]
    rows += [["baseline", "final", cell(point, key), count(point["cost"])] for point in baselines[:1]]
    device = result.provenance["device"]
    title = f"every exit on test, on {device}: {NAMES[key]} %, mean ± standard deviation over seeds"
    tables = [text_table(title, ["", "exit", f"{NAMES[key]} %", result.cost], rows)]
    for method, points in result.best.items():
        rows = [[count(point["budget"]), cell(point, key), count(point["cost"])] for point in points]
        title = f"{method}: the best model of each budget, chosen on cal"
        tables.append(text_table(title, ["budget", f"{NAMES[key]} %", result.cost], rows))
    return _with_files("\n\n".join(tables), result)


def _point(point: dict[str, Any], key: str) -> tuple[str, str]:
    return percent(point[key]), count(point["cost"])


def _with_files(text: str, result: "Curves | CurveComparison") -> str:
    written = [f"all points: {Path(result.picture).with_suffix('.json')}, {result.picture}"]
    return "\n".join([text, *written, *(f"wrote {file}" for file in result.files)])
