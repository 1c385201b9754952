"""offramp deploy: extract one of several networks that were trained together, as a run."""

from pathlib import Path

from offramp.cli import show
from offramp.cli._options import Json


def deploy(
    run: Path,
    *,
    out: Path,
    keep: str = "1",
    json: Json = False,
) -> None:
    """Extract one of several networks that were trained together (dml, one), as a run.

    Args:
        run: Folder of a run that trained several networks.
        out: Folder of the new run; it must be new or empty.
        keep: Number of the network or branch, counted from 1, `best` (the most accurate on val), or `ensemble` (the
            gated ensemble).
    """
    from offramp.runs.deploy import deploy as write_run

    show(write_run(run, out, keep=keep), json)
