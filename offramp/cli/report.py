"""offramp report: one HTML file that shows what one or several runs do, to be read without a network."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli import emit
from offramp.cli._options import DataDir, Json, Weights
from offramp.measure.units import count, percent

if TYPE_CHECKING:
    from offramp.runs.report import Report


def report(
    *runs: Path,
    out: Path | None = None,
    weights: Weights = "last",
    images: int = 8,
    batch_size: int | None = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Accuracy against cost, exits, reliability, the easiest and hardest images, costs, training: one file.

    Args:
        runs: Folders of trained runs, or of comparisons; several share one chart.
        out: The file to write; default: report.html in the run's folder; needed for several runs.
        images: How many of the easiest, and of the hardest, are shown of every exit; 0 needs no data if the traces are
            stored already.
        batch_size: Measure the milliseconds of every stage and branch at this batch size, here and now.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.report import report as write_report

    result = write_report(
        *runs,
        out=out,
        weights=weights,
        images=images,
        batch_size=batch_size,
        data_dir=data_dir,
        reporter=ConsoleReporter(not json),
    )
    if json:
        emit(dataclasses.asdict(result))
    else:
        _show(result)


def _show(result: "Report") -> None:
    from offramp.cli._console import stdout, table

    rows = []
    for run in result.runs:
        plain, leaving = run["plain"], run["policy"]
        row = [run["name"], percent(plain["accuracy"]), count(plain["cost"])]
        rows.append([*row, percent(leaving["accuracy"]), count(leaving["cost"])] if leaving else [*row, "–", "–"])
    head = ["run", "plain %", "MACs", "policy %", "mean MACs"]
    stdout.print(table("on test", head, rows), soft_wrap=True)
    stdout.print(f"{result.report} ({result.bytes / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
