"""offramp curves: accuracy against cost on test, anytime and for budgeted batches, as JSON and as a figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offramp.cli import emit_result
from offramp.cli._options import BaselinePath, DataDir, Device, Json, OutputFiles, Weights
from offramp.lookup import with_parameters

if TYPE_CHECKING:
    from offramp.runs.curves import CurveComparison, Curves


def curves(
    *runs: Path,
    cost: Literal["macs_cumulative", "msdnet_ops"] = "macs_cumulative",
    metric: Literal["top1", "top5"] = "top1",
    weights: Weights = "last",
    data_dir: DataDir = None,
    device: Device = "auto",
    baseline: BaselinePath = None,
    out: Path | None = None,
    write: OutputFiles = (),
    json: Json = False,
) -> None:
    """Accuracy against cost on test: anytime prediction and budgeted batches.

    Anytime prediction: the accuracy of every exit on all test images. Budgeted batches: early exit at 39 budgets, with
    thresholds fitted on cal by MSDNet's geometric rule. Writes curves.json and curves.svg. Several runs, or a
    comparison, are drawn in one figure, with mean and standard deviation over seeds.

    Args:
        runs: Folders of trained runs, or of comparisons.
        cost: How operations are counted: macs_cumulative (multiply-adds), or msdnet_ops (as in the code of MSDNet);
            both include the branches of all earlier exits.
        metric: Top-1 or top-5 accuracy.
        out: Folder to write to; default: the folder of the run or comparison; required for several runs.
        write: Further files, comma-separated: .csv and .tex tables, .svg, .pdf and .png figures.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.comparison_folder import runs_of
    from offramp.runs.curves import METRICS, compare_curves
    from offramp.runs.curves import curves as draw_curves

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
            device=device,
            baseline=baseline,
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
            device=device,
            baseline=baseline,
            write=write,
            reporter=ConsoleReporter(not json),
        )
    if json:
        emit_result(result)
    else:
        _show(result, METRICS[metric])


def _show(result: "Curves | CurveComparison", key: str) -> None:
    from offramp.cli._console import stderr, stdout
    from offramp.runs.curves import Curves
    from offramp.runs.curves_text import comparison_text, curves_text

    if isinstance(result, Curves):
        text = curves_text(result, key)
    else:
        text = comparison_text(result, key)
        for run in result.runs:
            if run.refused:
                stderr.print(run.refused, highlight=False, markup=False, soft_wrap=True)
    stdout.print(text, highlight=False, markup=False, soft_wrap=True)
