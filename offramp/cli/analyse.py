"""offramp analyse: the papers' analyses of trained runs, as tables, JSON and figures."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli import emit_result
from offramp.cli._options import DataDir, Device, Json, Weights
from offramp.measure.text_table import prose
from offramp.measure.units import percent

if TYPE_CHECKING:
    from offramp.runs.analyse import ExitAnalysis, RunAnalysis

LEGEND = (
    "rel. MACs: multiply-adds up to this exit, as a share of those of the final exit",
    "wrong later: of the images that this exit classifies correctly, the % that some later exit gets wrong; always: "
    "that all later exits get wrong",
    "alone: number of images that only this exit classifies correctly; top-1 p: mean of the largest probability",
)
"""What the columns of the tables are."""


def analyse(
    *runs: Path,
    out: Path | None = None,
    weights: Weights = "last",
    top: int = 5,
    dissimilarity: int = 500,
    batch_size: int | None = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Analyse exits: errors of later exits, agreement, softmax statistics, relative cost, dissimilarity.

    The analyses of MUSE (Fig. 4 to 6) and EED (Fig. 2 and 4), and the images that only one exit classifies correctly,
    on test.
    Writes analysis.json and figures as SVG.

    Args:
        runs: Folders of trained runs, or of comparisons; several are drawn in the same figures.
        out: Folder to write to; default: analysis in the run's folder; required for several runs.
        top: Number of most probable classes that the partial entropy (H top-N) is computed over.
        dissimilarity: Number of test images in the dissimilarity matrices; 0: none is drawn, and the data are not
            needed if traces are stored.
        batch_size: Also measure milliseconds up to every exit on this machine, at this batch size.
    """
    from offramp.cli._console import ConsoleReporter, stdout
    from offramp.runs.analyse import analyse as analyse_runs

    result = analyse_runs(
        *runs,
        out=out,
        weights=weights,
        top=top,
        dissimilarity=dissimilarity,
        batch_size=batch_size,
        data_dir=data_dir,
        device=device,
        reporter=ConsoleReporter(not json),
    )
    if json:
        emit_result(result)
        return
    for run in result.runs:
        _show(run, result.provenance["device"])
    for file in result.files:
        stdout.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)


def _show(run: "RunAnalysis", device: str) -> None:
    from offramp.cli._console import stdout, table

    timed = run.exits[0].ms is not None
    head = ["exit", "acc. %", "rel. MACs", *(["rel. ms"] if timed else []), "wrong later", "always", "alone", "top-1 p"]
    title = f"{run.name} on test, computed{' and timed' if timed else ''} on {device}"
    stdout.print(table(title, head, [_row(exit, timed) for exit in run.exits]), soft_wrap=True)
    top = run.exits[0].softmax.top
    rows = [
        [
            exit.name,
            *([str(n) for n in dataclasses.astuple(exit.agreement)] if exit.agreement else ["–"] * 4),
            f"{exit.softmax.entropy_top:.3f}",
            f"{exit.softmax.entropy:.3f}",
            percent(exit.calibration_error),
        ]
        for exit in run.exits
    ]
    head = ["exit", "both", "final only", "exit only", "neither", f"H top-{top}", "H", "ECE"]
    stdout.print(table("agreement with the final exit, entropies in nats, calibration", head, rows), soft_wrap=True)
    for line in LEGEND:
        stdout.print(prose(line), highlight=False, soft_wrap=True)


def _row(exit: "ExitAnalysis", timed: bool) -> list[str]:
    wrong = exit.go_wrong
    shares = [wrong.any_later, wrong.all_later] if wrong else [None, None]
    return [
        exit.name,
        percent(exit.accuracy),
        f"{exit.relative_cost:.3f}",
        *([f"{exit.relative_ms:.3f}"] if timed else []),
        *("–" if share is None else percent(share) for share in shares),
        str(len(exit.only_correct)),
        f"{exit.softmax.rank_means[0]:.3f}",
    ]
