"""offramp deploy: extract one of several networks that were trained together, as a run."""

import dataclasses
from pathlib import Path

from offramp.cli import emit
from offramp.cli._options import Json
from offramp.measure.units import count


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
        keep: Number of the network or branch, `best` (the most accurate on val), or `ensemble` (the gated ensemble).
    """
    from offramp.cli._console import stdout
    from offramp.runs.deploy import deploy as write_run

    result = write_run(run, out, keep=keep)
    if json:
        emit(dataclasses.asdict(result))
        return
    cost = result.deployed
    text = f"{out}: {result.kept} of {run}, {count(cost['macs'])} MACs, {count(cost['parameters'])} parameters"
    stdout.print(text, highlight=False, soft_wrap=True)
