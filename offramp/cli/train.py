"""offramp train: train a network with exits, and keep everything that is needed to go on or to use it."""

import json
import os
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

from cyclopts import Parameter

from offramp.cli import emit
from offramp.cli._options import ConfigFile, ConfigOptions, Dotted, Json, config_of
from offramp.config import ResolvedConfig, build_data, build_method, build_net, flat, load_weights, prepare, resolve


def train(
    config: ConfigOptions = ConfigOptions(),  # noqa: B008
    *,
    out: Path,
    resume: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
) -> None:
    """Train a network with exits.

    Besides the options below, `--net.KEY`, `--branch.KEY`, `--method.KEY` and `--data.KEY` set the parameters that
    `offramp nets|branches|methods|data NAME` lists. Ctrl-C saves; `--resume` goes on, to the bit.

    Args:
        out: Folder of the run: config, metrics, checkpoints, weights.
        resume: Go on where the run in this folder stands.
    """
    result = run(resolve(config_of(config, option)), out, resume, show=not json)
    if json and result:  # processes other than the first have none
        emit(result)


def run(config: ResolvedConfig, folder: Path, resume: bool, show: bool) -> dict[str, Any]:
    """Train as the resolved configuration says; answers what `result.json` holds."""
    import torch

    from offramp.cli._console import TrainingProgress
    from offramp.measure.provenance import provenance
    from offramp.train import phases, run_dir
    from offramp.train.device import make_fabric
    from offramp.train.loop import Loop, refuse
    from offramp.train.reporter import Diverged, Interrupted

    finished = run_dir.read_result(folder) if resume else None
    if finished is not None:
        run_dir.claim(folder, flat(config), resume)
        reporter = TrainingProgress(show)
        reporter.note(f"{folder} is finished: {_epochs(finished['epochs'])} in {finished['seconds']:.0f} s")
        return finished
    data = build_data(config, progress=show)
    torch.manual_seed(config.recipe.seed)
    method = build_method(config)
    net = build_net(config, method, classes=len(data.classes), shape=data.shape)
    phases.refuse_net(config.recipe, method, net)
    refuse(method, config.recipe, data)
    notes = (*data.notes, *load_weights(config, net), *prepare(method, net, data.shape))
    if config.weights is None and not config.net.startswith("python:"):  # functions may load weights themselves
        notes += phases.notes(config.recipe, method)
    origin = provenance()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        run_dir.claim(folder, flat(config), resume)
    fabric = make_fabric(config.recipe, parted=method.parted)
    reporter = TrainingProgress(show and fabric.is_global_zero)
    _introduce(reporter, config, net, data, notes)
    loop = Loop(fabric, folder, config.recipe, net, method, data, reporter)
    try:
        loop.run(resume)
    except (Diverged, Interrupted) as end:
        if not fabric.is_global_zero:  # the first process says it, and is killed if another one fails meanwhile
            raise SystemExit(0) from None
        if isinstance(end, Diverged):
            raise
        reporter.stop()
        reporter.note(f"saved in {folder}; the same command with --resume goes on")
        raise KeyboardInterrupt from None
    finally:
        reporter.stop()
    return _conclude(loop, config, reporter, origin) if fabric.is_global_zero else {}


def _epochs(number: int) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"


def _introduce(reporter: Any, config: ResolvedConfig, net: Any, data: Any, notes: tuple[str, ...]) -> None:
    from offramp.net import MultiExitNet

    chain = isinstance(net, MultiExitNet)
    of = f"{config.net} with {config.branch} exits" if chain else f"{config.net}: {', '.join(net.names)}"
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    reporter.note(fill(f"{config.method} on {of}; {config.data}: {sizes}", 78))
    for note in notes:
        reporter.note(fill(note, 78, break_long_words=False, break_on_hyphens=False))
    for kind in ("net", "branch", "method"):
        values = ", ".join(f"{key} {value}" for key, value in config.options.get(kind, {}).items())
        if values:
            reporter.note(fill(f"{kind}: {values}", 78, initial_indent="  ", subsequent_indent="    "))
    reporter.note(f"  {config.recipe.device}, {config.recipe.precision}, seed {config.recipe.seed}")


def _conclude(loop: Any, config: ResolvedConfig, reporter: Any, origin: dict[str, Any]) -> dict[str, Any]:
    """Write result.json: where the figures come from, the last epoch and the best on val, both."""
    from offramp.measure.multi_net import training_cost
    from offramp.train import log, run_dir

    epochs = log.read(loop.folder / "metrics.jsonl", "epoch")
    best = epochs[loop.at.best_epoch] if loop.at.best_epoch >= 0 else None
    result = {
        "run": str(loop.folder),
        "epochs": config.recipe.epochs,
        "seconds": loop.at.seconds,
        "last": {"epoch": epochs[-1]["epoch"] + 1, "val_accuracy": epochs[-1]["val_accuracy"]},
        "best": {"epoch": best["epoch"] + 1, "val_accuracy": best["val_accuracy"]} if best else None,
        "cost": training_cost(loop.net, tuple(loop.data.shape)),
        "provenance": origin,
    }
    run_dir.put(loop.folder / run_dir.RESULT, json.dumps(result, indent=2) + "\n")
    reporter.note(f"done: {_epochs(config.recipe.epochs)} in {loop.at.seconds:.0f} s, kept in {loop.folder}")
    return result
