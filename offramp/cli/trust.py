"""offramp trust: allow a run that was trained elsewhere to import the code that it names."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from offramp.cli import emit


def trust(run: Path, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Allow a run from elsewhere to import the code that its configuration names.

    That code runs with your permissions whenever the run is opened, so read it first. Trust covers this configuration
    with these source files; it is recorded in $OFFRAMP_STATE (default: ~/.local/state/offramp).

    Args:
        run: Folder of a run.
        json: Print one JSON object.
    """
    from offramp import trust as trusted
    from offramp.cli._console import stdout
    from offramp.train.run_dir import read_config

    modules = trusted.grant(read_config(run))
    if json:
        emit({"run": str(run), "modules": modules})
        return
    if not modules:
        stdout.print(f"{run} names no code, so that it needs no trust", highlight=False, soft_wrap=True)
    for name, source in modules.items():
        stdout.print(f"{run} may import {name} from {source}", highlight=False, soft_wrap=True)
