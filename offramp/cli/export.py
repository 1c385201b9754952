"""offramp export: a calibrated run as a folder that runs without torch."""

from pathlib import Path

from offramp.cli import show
from offramp.cli._options import DataDir, Json, Weights


def export(
    run: Path,
    *,
    out: Path,
    weights: Weights = "last",
    data_dir: DataDir = None,
    images: int = 1000,
    json: Json = False,
) -> None:
    """Export segments, policy and preprocessing as a verified bundle that runs without torch.

    Args:
        run: Folder of a trained and calibrated run.
        out: Folder of the bundle; it must be new or empty.
        images: Number of images to verify and measure with, at least 1000 (all, if there are fewer).
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.export import export as export_run

    reporter = ConsoleReporter(not json)
    show(export_run(run, out, weights=weights, data_dir=data_dir, images=images, reporter=reporter), json)
