"""offramp report: one self-contained HTML file about one or several runs."""

from pathlib import Path

from offramp.cli import show
from offramp.cli._options import BaselinePath, DataDir, Device, Json, Weights


def report(
    *runs: Path,
    out: Path | None = None,
    weights: Weights = "last",
    images: int = 8,
    batch_size: int | None = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    baseline: BaselinePath = None,
    json: Json = False,
) -> None:
    """Write one HTML file about trained runs: curves, exits, images, costs, training.

    Args:
        runs: Folders of trained runs, or of comparisons; several are drawn in one chart.
        out: File to write; default: report.html in the run's folder; required for several runs.
        images: Number of easiest and of hardest images to show for every exit; 0: none, and the data are not needed if
            traces are stored.
        batch_size: Also measure milliseconds of every stage and branch on this machine, at this batch size.
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
        device=device,
        baseline=baseline,
        reporter=ConsoleReporter(not json),
    )
    show(result, json)
