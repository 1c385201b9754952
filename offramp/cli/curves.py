"""offramp curves: accuracy against cost on test, anytime and for budgeted batches, as JSON and as a picture."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offramp.cli import emit
from offramp.cli._options import DataDir, Json, Weights
from offramp.measure.units import count, percent

if TYPE_CHECKING:
    from offramp.runs.curves import Curves


def curves(
    run: Path,
    *,
    cost: Literal["macs_cumulative", "msdnet_ops"] = "macs_cumulative",
    weights: Weights = "last",
    data_dir: DataDir = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """The two curves of the field: every exit on all of test, and the 39 points of budgeted batches.

    Thresholds are fitted on cal by MSDNet's geometric rule, and reported on test. Writes curves.json and curves.svg.

    Args:
        run: Folder of a trained run.
        cost: How operations are counted, with the branches of all earlier exits.
        out: Folder to write into; default: the run's own.
    """
    from offramp.runs.curves import curves as draw_curves

    result = draw_curves(run, cost=cost, weights=weights, data_dir=data_dir, out=out, show=not json)
    if json:
        emit(dataclasses.asdict(result))
    else:
        _show(result, out or run)


def _show(result: "Curves", folder: Path) -> None:
    from offramp.cli._console import stdout, table

    rows = [
        [f"{point['q']:.2f}", percent(point["accuracy"]), count(point["cost"])]
        for point in result.budgeted
        if round(point["q"] * 20) % 4 == 0
    ]
    title = f"{result.run}: budgeted batch on test, {result.samples['test']:,} samples"
    stdout.print(table(title, ["q", "accuracy %", result.cost], rows), soft_wrap=True)
    stdout.print("q: how many times as many leave at each exit as at the one before", highlight=False, soft_wrap=True)
    stdout.print(f"all 39 points: {folder / 'curves.json'}, {folder / 'curves.svg'}", highlight=False, soft_wrap=True)
