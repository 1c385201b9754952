"""offramp export: a calibrated run as a folder that runs without torch."""

from pathlib import Path

from offramp.cli import show
from offramp.cli._goal import points
from offramp.cli._options import DataDir, Json, Weights


def export(
    run: Path,
    *,
    out: Path,
    weights: Weights = "last",
    data_dir: DataDir = None,
    images: int = 1000,
    int8: bool = False,
    int8_drop: str | None = None,
    json: Json = False,
) -> None:
    """Export segments, policy and preprocessing as a verified bundle that runs without torch.

    Args:
        run: Folder of a trained and calibrated run.
        out: Folder of the bundle; it must be new or empty.
        images: Number of images to verify and measure with, at least 1000 (all, if there are fewer).
        int8: Quantise the segments to 8-bit integers, with ranges from cal, and fit the thresholds again.
        int8_drop: With --int8: largest loss of accuracy on cal, in percentage points, at any exit; default: 0.5. A
            larger loss is refused if it is statistically significant.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.export import export as export_run

    result = export_run(
        run,
        out,
        weights=weights,
        data_dir=data_dir,
        images=images,
        int8=int8,
        int8_drop=None if int8_drop is None else points("int8_drop", int8_drop),
        reporter=ConsoleReporter(not json),
    )
    show(result, json)
