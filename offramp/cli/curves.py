"""offramp curves: accuracy against cost on test, anytime and for budgeted batches, as JSON and as a figure."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offramp.cli import emit
from offramp.cli._options import DataDir, Files, Json, Weights
from offramp.lookup import with_parameters
from offramp.measure.units import count, percent

if TYPE_CHECKING:
    from offramp.runs.curves import CurveComparison, Curves


def curves(
    *runs: Path,
    cost: Literal["macs_cumulative", "msdnet_ops"] = "macs_cumulative",
    metric: Literal["top1", "top5"] = "top1",
    weights: Weights = "last",
    data_dir: DataDir = None,
    out: Path | None = None,
    write: Files = (),
    json: Json = False,
) -> None:
    """Accuracy against cost on test: anytime prediction and budgeted batches.

    Anytime: every exit on all of test. Budgeted batches: 39 points with thresholds fitted on cal by MSDNet's geometric
    rule. Writes curves.json and curves.svg. Several runs, or a comparison, are drawn in one figure, with mean and
    standard deviation over seeds.

    Args:
        runs: Folders of trained runs, or of comparisons.
        cost: How operations are counted; both include the branches of all earlier exits.
        metric: Top-1 or top-5 accuracy.
        out: Folder to write to; default: the folder of the run or comparison; required for several runs.
        write: Further files, comma-separated: .csv and .tex tables, .svg, .pdf and .png figures.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.curves import compare_curves
    from offramp.runs.curves import curves as draw_curves
    from offramp.runs.sweep import runs_of

    if not runs:
        raise ValueError("name at least one run: offramp curves RUN...")
    folders = runs_of(runs)
    result: Curves | CurveComparison
    if len(folders) == 1:
        (run,) = folders
        result = draw_curves(
            run,
            cost=cost,
            metric=metric,
            weights=weights,
            data_dir=data_dir,
            out=out,
            write=write,
            reporter=ConsoleReporter(not json),
        )
    else:
        target = out or (runs[0] if len(runs) == 1 else None)
        if target is None:
            raise with_parameters(ValueError(f"curves of {len(folders)} runs need out=DIR"), "out")
        result = compare_curves(
            folders,
            target,
            cost=cost,
            metric=metric,
            weights=weights,
            data_dir=data_dir,
            write=write,
            reporter=ConsoleReporter(not json),
        )
    if json:
        emit(dataclasses.asdict(result))
    else:
        _show(result, "top5" if metric == "top5" else "accuracy")


def _show(result: "Curves | CurveComparison", key: str) -> None:
    from offramp.cli._console import stdout
    from offramp.runs.curves import Curves

    def say(text: str) -> None:
        stdout.print(text, highlight=False, markup=False, soft_wrap=True)

    if isinstance(result, Curves):
        _show_run(result, key)
    else:
        _show_groups(result, key)
    say(f"all points: {Path(result.picture).with_suffix('.json')}, {result.picture}")
    for file in result.files:
        say(f"wrote {file}")


def _show_run(result: "Curves", key: str) -> None:
    from offramp.cli._console import stdout, table
    from offramp.study.curve_tables import NAMES
    from offramp.study.figures import exit_name

    head = [f"{NAMES[key]} %", result.cost]
    exits = len(result.anytime)
    rows = [[exit_name(exit, exits), *_point(point, key)] for exit, point in enumerate(result.anytime)]
    title = f"{result.run}: every exit on test, {result.samples['test']:,} samples"
    stdout.print(table(title, ["exit", *head], rows), soft_wrap=True)
    stdout.print()
    if result.refused:
        stdout.print(result.refused, highlight=False, markup=False, soft_wrap=True)
        return
    rows = [[f"{point['q']:.2f}", *_point(point, key)] for point in result.budgeted if round(point["q"] * 20) % 4 == 0]
    title = f"{result.run}: budgeted batch on test, {result.samples['test']:,} samples"
    stdout.print(table(title, ["q", *head], rows), soft_wrap=True)
    stdout.print("q: how many times as many leave at each exit as at the one before", highlight=False, soft_wrap=True)


def _point(point: dict[str, Any], key: str) -> tuple[str, str]:
    return percent(point[key]), count(point["cost"])


def _show_groups(result: "CurveComparison", key: str) -> None:
    from offramp.cli._console import stderr, stdout, table
    from offramp.study.curve_tables import NAMES, cell
    from offramp.study.figures import exit_name

    for run in result.runs:
        if run.refused:
            stderr.print(run.refused, highlight=False, markup=False, soft_wrap=True)
    rows = [
        [group.name if not exit else "", exit_name(exit, len(group.anytime)), cell(point, key), count(point["cost"])]
        for group in result.groups
        for exit, point in enumerate(group.anytime)
    ]
    title = f"every exit on test, {NAMES[key]} %, mean ± standard deviation over seeds"
    stdout.print(table(title, ["", "exit", f"{NAMES[key]} %", result.cost], rows), soft_wrap=True)
