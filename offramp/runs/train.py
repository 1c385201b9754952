"""Train a network with exits, and keep everything that is needed to resume the run or to use it."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.config import (
    Completed,
    Config,
    ResolvedConfig,
    build_method,
    build_net,
    complete,
    flat,
    keep_choices,
    load_weights,
    prepare_objective,
    resolve,
)
from offramp.runs.device_change import change, continued, device_of_run, on_device_of
from offramp.runs.introduction import introduce
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.trained_run import TrainedRun, epoch_accuracy, trained_run
from offramp.text import quantity

if TYPE_CHECKING:
    from torch import nn

    from offramp.data.splits import DataSet
    from offramp.methods._method import Method
    from offramp.runs.split import Origin
    from offramp.train.loop import Loop
    from offramp.train.meeting import Meeting


@check_arguments
def train(
    config: Config, out: Path | str, *, resume: bool = False, nodes: int = 1, reporter: Reporter | None = None
) -> TrainedRun:
    """Train a network with exits.

    With several processes (`config.devices` on each of `nodes` machines) only the first one returns; the others exit in
    this call.

    Args:
        config: network, exits, method, data and recipe.
        out: folder of the run: config, metrics, checkpoints, weights.
        resume: continue the run in this folder; a finished one is returned as it is. `epochs` may be larger than before
            if the epochs already trained do not depend on it (a constant learning rate and one phase). With another
            `device` than before, the run continues there with other numerical results, which its record states;
            precision, memory format, threads and graph are chosen for that device unless they are given.
        nodes: number of machines; a launcher or the user makes this call on each of them.
        reporter: called with the progress of training; by default nothing is shown.
    Raises:
        ValueError: if the configuration is invalid, the data cannot be read or have changed, the folder holds
            another run, or a launcher started another number of processes.
        offramp.train.run_lock.InUse: if another process writes into the folder.
        offramp.train.reporter.Diverged: if the loss or a weight is no longer a number.
        offramp.train.meeting.OtherFailed: if another process of the run ended before the first step.
        offramp.train.lost.ConnectionLost: if another process of the run ended without a word, or was not started.
        KeyboardInterrupt: after Ctrl-C, when the run was saved; after SIGTERM or SIGUSR1 its subclass
        `offramp.train.interrupt.Preempted`.
    """
    from offramp.train.meeting import meeting

    reporter = reporter or SILENT
    with meeting(config.devices, nodes, reporter.note) as others:
        return _start(config, Path(out), resume, nodes, reporter, others)


def _start(config: Config, folder: Path, resume: bool, nodes: int, reporter: Reporter, others: "Meeting") -> TrainedRun:
    """Check what can be checked without the data and without the other processes, then train."""
    from offramp.train import run_dir
    from offramp.train.device import check_devices, of_all_nodes
    from offramp.train.launcher import check_launcher

    resolved = resolve(config)
    check_launcher(resolved.devices, nodes)
    of_all_nodes(resolved, nodes)
    check_devices(resolved)
    resumed, moved = resume and run_dir.begun(folder), False
    if resumed:
        stored = run_dir.read_config(folder)
        resolved = keep_choices(resolved, stored)
        ended = run_dir.read_result(folder) is not None and not run_dir.epochs_before(folder, flat(resolved))
        resolved = device_of_run(config, resolved, stored) if ended else continued(config, resolved, stored, folder)
        moved = resolved.device != stored.get("device")
    longer = resumed and run_dir.epochs_before(folder, flat(resolved))
    if resume and not longer and (result := _finished(resolved, folder, reporter)):
        return result
    others.join()
    completed = complete(resolved, resumed=resumed, progress=reporter.working)
    measured = config.precision == "auto" and (moved or not resumed)
    return _train(completed, folder, resume, reporter, nodes, measured, others)


def _finished(config: ResolvedConfig, folder: Path, reporter: Reporter) -> TrainedRun | None:
    """The result of a run that is finished, if it is this one; nothing is written."""
    from offramp.train import run_dir

    values = run_dir.read_result(folder)
    if values is None:
        return None
    run_dir.check_folder(folder, flat(config), resume=True)
    if not (folder / "last.safetensors").is_file():
        raise run_dir.no_weights(folder, "last.safetensors")
    result = trained_run({**values, "run": values.get("run", str(folder))})
    reporter.note(f"{folder} is finished: {quantity(result.epochs, 'epoch')} in {result.seconds:.0f} s")
    return result


def _train(
    completed: Completed,
    folder: Path,
    resume: bool,
    reporter: Reporter,
    nodes: int,
    measured: bool,
    others: "Meeting",
) -> TrainedRun:
    """Train what `completed` says; `measured`: with the settings that are fastest for this network and machine."""
    from offramp.measure.multi_net import training_cost
    from offramp.measure.provenance import provenance
    from offramp.runs import split
    from offramp.train import agreement, device, run_dir
    from offramp.train.launcher import place_in
    from offramp.train.loop import Loop
    from offramp.train.lost import naming_lost_processes
    from offramp.train.more_epochs import refuse_more_epochs
    from offramp.train.numerics import cpu_threads

    config = completed.config
    recipe = device.of_all_nodes(config, nodes)
    method, net, data, first, notes = _build(completed._replace(config=recipe))
    if measured:
        config, recipe, note = _with_fastest(config, recipe, net, data)
        notes += (note,) if note else ()
    if config.graph and config.device == "cpu":
        notes += ("graph: a CPU has no CUDA graphs; steps are taken as without",)
    before = run_dir.epochs_before(folder, flat(config)) if resume else None
    if before:
        refuse_more_epochs(config, method, before)
        notes += (f"the run had {quantity(before, 'epoch')} and continues to {config.epochs}",)
    fabric = device.set_up(recipe, freezes=method.freezes, nodes=nodes)

    def agree() -> None:
        others.join(place_in(fabric.strategy, recipe.devices))
        state = agreement.state_of(flat(config), data, folder if resume else None)
        others.agree(state, lambda states: agreement.check_alike(states, folder))

    writes = device.writes(fabric)
    if writes and resume:
        notes += tuple(filter(None, [change(folder, config)]))
    claimed = run_dir.claimed(folder, flat(config), resume, extend=bool(before)) if writes else nullcontext()
    with cpu_threads(config.threads), claimed:
        origin = provenance(config.device)
        if writes and resume and (result := _finished(config, folder, reporter)):  # another process was quicker
            return result
        if writes:
            notes += split.begin(folder, data, first, run_dir.begun(folder))
        else:  # refuse what the first process refuses, instead of waiting for it
            _check_begun(config, folder, data, resume, bool(before))
        with naming_lost_processes(fabric, recipe.devices):
            device.launch(fabric, agree)
            reporter = reporter if fabric.is_global_zero else SILENT
            introduce(reporter, config, net, data, notes)
            cost = training_cost(net, data.shape) if fabric.is_global_zero else {}  # before the network is divided
            loop = Loop(fabric, folder, recipe, net, method, data, reporter)
            _run(loop, resume, reporter)
        return _conclude(loop, config, reporter, cost, origin)


def _with_fastest(
    config: ResolvedConfig, recipe: ResolvedConfig, net: "nn.Module", data: "DataSet"
) -> tuple[ResolvedConfig, ResolvedConfig, str]:
    """Both with the settings that are fastest for this network on this machine, and a note about them."""
    from offramp.train.fastest import fastest

    settings, note = fastest(net, recipe, len(data.splits["train"]), data.shape, len(data.classes))
    chosen: Any = settings._asdict()
    return dataclasses.replace(config, **chosen), dataclasses.replace(recipe, **chosen), note


def _check_begun(config: ResolvedConfig, folder: Path, data: "DataSet", resume: bool, extend: bool) -> None:
    """Refuse a folder as the first process does, which may just be writing the device into its configuration."""
    from offramp.runs import split
    from offramp.train import run_dir

    if run_dir.begun(folder):
        values = on_device_of(flat(config), run_dir.read_config(folder))
        run_dir.check_folder(folder, values, resume, extend=extend)
        split.check(folder, data)


def _build(completed: Completed) -> tuple["Method", "nn.Module", "DataSet", "Origin", tuple[str, ...]]:
    """Method, network and data, checked against each other; where the first weights are from; notes for the user."""
    import torch

    from offramp.runs.split import keep_apart
    from offramp.train import phases
    from offramp.train.check import refuse

    config, data, sources = completed
    data, first = keep_apart(data, config.weights)
    torch.manual_seed(config.seed)
    method = build_method(config)
    net = build_net(config, method, classes=len(data.classes), shape=data.shape)
    refuse(method, config, net, data)
    notes = (
        *sources,
        *data.notes,
        *load_weights(config, net, data.shape),
        *first.notes,
        *prepare_objective(method, net, data.shape),
    )
    refuse(method, config, net, data)  # again: now the objective has its learned parts
    if (
        config.weights is None and not config.pretrained and not config.net.startswith("python:")
    ):  # functions may load weights themselves
        notes += phases.notes(config, method)
    return method, net, data, first, notes


def _run(loop: "Loop", resume: bool, reporter: Reporter) -> None:
    """Train to the end; processes other than the first end here."""
    from offramp.train.interrupt import end_of
    from offramp.train.reporter import Diverged, Interrupted

    try:
        loop.run(resume)
    except (Diverged, Interrupted) as end:
        if not loop.fabric.is_global_zero:  # the first process says it, and is killed if another one fails meanwhile
            raise SystemExit(0) from None
        if isinstance(end, Diverged):
            raise
        reporter.stop()
        raise end_of(loop.signals, f"saved in {loop.folder}") from None
    finally:
        reporter.stop()
    if not loop.fabric.is_global_zero:
        raise SystemExit(0)


def _conclude(
    loop: "Loop", config: ResolvedConfig, reporter: Reporter, cost: dict[str, Any], origin: dict[str, Any]
) -> TrainedRun:
    """Write result.json: where the figures come from, the last epoch and the best on val."""
    from offramp.train import log, run_dir
    from offramp.train.run_dir import METRICS

    if changes := log.read(loop.folder / METRICS, "device"):
        origin = {**origin, "device_changes": changes}
    result = TrainedRun(
        run=str(loop.folder),
        epochs=loop.position.epoch,
        seconds=loop.position.seconds,
        last=epoch_accuracy(loop.folder / "last.safetensors"),
        best=epoch_accuracy(loop.folder / "best.safetensors") if loop.position.best_epoch >= 0 else None,
        cost=cost,
        provenance=origin,
    )
    run_dir.write_result(loop.folder, dataclasses.asdict(result))
    if result.epochs < config.epochs and result.best:
        reporter.note(
            f"stopped after {quantity(result.epochs, 'epoch')} of {config.epochs}: accuracy on val was best in epoch "
            f"{result.best.epoch}, whose weights are in best.safetensors"
        )
    reporter.note(f"done: {result}")
    return result
