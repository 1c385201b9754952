"""offramp deploy: of several networks that were trained together, a plain run of one of them."""

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
    """Write a run of one network out of several (dml, one), for all verbs that take a run.

    Args:
        run: Folder of a run that trained several networks.
        out: Folder of the plain run; it must not exist yet, or be empty.
        keep: Number of the network or branch, `ensemble` (the gated one), or `best` (a network or branch, on val).
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
