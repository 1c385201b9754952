"""offramp train: train a network with exits, and keep everything needed to resume or to use it."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from offramp.cli import emit_result
from offramp.cli._failure import LAUNCHED
from offramp.cli._options import ConfigFile, ConfigOptions, Dotted, Json, RecipeName, config_of
from offramp.lookup import ParameterError


def train(
    config: ConfigOptions = ConfigOptions(),  # noqa: B008
    *,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    nodes: int = 1,
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
    recipe: RecipeName = None,
) -> None:
    """Train a network with exits.

    Besides the options below, `--net.KEY`, `--branch.KEY`, `--method.KEY` and `--data.KEY` set the parameters that
    `offramp nets|branches|methods|data NAME` lists. Ctrl-C saves a checkpoint, as do SIGTERM and SIGUSR1 (exit status
    75); `--resume` continues from it with identical results (on a GPU: with --deterministic).

    Args:
        out: Folder of the run: config, metrics, checkpoints, weights. Required, unless --recipe NAME is given: then the
            default is runs/NAME.
        resume: Continue the run in --out, or start it if there is none; a finished run is not changed.
        nodes: Number of machines, each with --devices processes; the command is started on each, by torchrun, by srun
            or by hand.
    """
    if LAUNCHED & os.environ.keys():  # before torch is imported: it prints its calls if a connection is lost
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from offramp.cli._console import ConsoleReporter
    from offramp.train.interrupt import preemptible

    reporter = ConsoleReporter(not json)
    try:
        with preemptible():
            from offramp.runs.train import train as train_run  # imports torch, which takes seconds
            from offramp.train.launcher import place_of
            from offramp.train.meeting import Meeting, telling

            with telling(Meeting(place_of(config.devices, nodes), reporter.note)):
                if out is None:
                    raise ParameterError("out is missing: the folder of the run, such as --out runs/a", "out")
                chosen = config_of(config, option)
            result = train_run(chosen, out, resume=resume, nodes=nodes, reporter=reporter)
    except KeyboardInterrupt as end:
        if end.args:
            reporter.note(f"{end}; the same command with --resume continues")
        raise
    if json:
        emit_result(result)
