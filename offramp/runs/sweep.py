"""Runs with many values of options, trained through Ray Tune, and the best of them on val."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.config import Config, flat, resolve
from offramp.lookup import ParameterError, nearest
from offramp.runs import comparison_folder, run_entries
from offramp.runs.grid import Grid, variants
from offramp.runs.packing import Jobs, check_jobs, runs_at_once
from offramp.runs.run_entries import Entry
from offramp.runs.sweep_result import METRICS, SweepResult, SweepTrial
from offramp.runs.sweep_score import RunScore, costs_of
from offramp.runs.train_all import ENTRY, PATIENCE, PRELOAD, CompareReporter, SilentCompare, job_of

if TYPE_CHECKING:
    from offramp.engine.local import Job
    from offramp.engine.ray import Cluster
    from offramp.engine.tune import Trial

SCHEDULERS = ("none", "asha")
SEARCHES = ("all", "random", "optuna")
LEDGER = "results.jsonl"


@check_arguments
def sweep(
    config: Config,
    grid: Grid,
    out: Path | str,
    *,
    metric: str = "accuracy",
    samples: int | None = None,
    search: str = "all",
    scheduler: str = "none",
    jobs: Jobs = "auto",
    address: str | None = None,
    fetch: bool = False,
    reporter: CompareReporter | None = None,
) -> SweepResult:
    """Train with many values of options, and select the best run on val; test is used only to report.

    The same call continues a stopped sweep.

    Args:
        config: the configuration that all runs share.
        grid: values of options, such as {"lr": [0.05, 0.1], "method.alpha": [0.1, 0.5]}.
        out: folder of the sweep; every run is a folder in it.
        metric: what is maximised on val after every epoch: `accuracy`, the mean accuracy of the exits; `final`, the
            accuracy of the final exit; or `frontier`, the area under the curve of accuracy against multiply-adds, from
            0 to those of the largest network of the sweep (linear between exits, 0 below the first).
        samples: number of combinations to draw; default: all.
        search: how combinations are chosen: `all`, `random`, or `optuna`, which uses the results of earlier runs.
        scheduler: `asha` stops runs early that are worse than others after the same number of epochs (asynchronous
            successive halving); `none` trains all to the end.
        jobs: number of runs at a time on each node, as in `offramp.compare`.
        address: `HOST:PORT` of the Ray cluster's head; default: $RAY_ADDRESS, a cluster of this machine, or a new one.
        fetch: for Ray nodes that do not share `out`, as in `offramp.compare`.
    Raises:
        ValueError: if a name, value or folder is invalid, the cluster does not answer, or Ray is not installed; before
        anything is trained. KeyboardInterrupt: after Ctrl-C; the same call continues.
    """
    search = "random" if search == "all" and samples is not None else search
    _check(config, grid, metric, samples, search, scheduler)
    check_jobs(jobs)
    folder, reporter = Path(out), reporter or SilentCompare()
    entries = _entries(config, grid, folder)
    about = {"metric": metric, "samples": samples, "search": search, "scheduler": scheduler}
    values = {key: [str(value) for value in choices] for key, choices in grid.items()}
    from offramp.engine import local
    from offramp.engine.choice import opened
    from offramp.engine.ray import Cluster

    comparison_folder.check_folder(folder)
    with opened("ray", address, fetch) as cluster, local.preloading(PRELOAD) if jobs == "auto" else nullcontext():
        assert isinstance(cluster, Cluster)
        entries, notes = run_entries.check(entries, reporter.working)
        _check_val(entries)
        for note in notes:
            reporter.note(note)
        score = RunScore(metric, costs_of(entries) if metric == "frontier" else {})
        folder.mkdir(parents=True, exist_ok=True)
        cluster.check(folder, any(entry.config.device == "cuda" for entry in entries))
        with local.locked_folder(folder / ".lock", PATIENCE, reporter.note) as lock:
            shared = run_entries.shared_by(entries, grid)
            comparison_folder.claim(folder, entries, {**shared, "sweep": {**about, "grid": values}})
            trials = _run(cluster, entries, values, score, folder, about, jobs, reporter, lock.fileno())
    if any(not trial.ended for trial in trials) or len(trials) < (samples or len(entries)):
        reporter.note(f"saved in {folder}; the same command continues")
        raise KeyboardInterrupt
    return _result(metric, {entry.point: entry for entry in entries}, trials, score, folder)


def _check(config: Config, grid: Grid, metric: str, samples: int | None, search: str, scheduler: str) -> None:
    """Refuse invalid values, before Ray is started."""
    if find_spec("ray") is None:
        raise ValueError("a sweep needs the package ray: pip install 'offramp[ray]'")
    for name, value, known in (
        ("metric", metric, METRICS),
        ("search", search, SEARCHES),
        ("scheduler", scheduler, SCHEDULERS),
    ):
        if value not in known:
            raise ParameterError(f"unknown {name} {value!r}; {nearest(value, known)}", name)
    if not grid:
        raise ParameterError("grid needs an option with its values, such as lr=0.05,0.1", "grid")
    if samples is not None and samples < 1:
        raise ParameterError(f"samples must be at least 1, got {samples}", "samples")
    if search != "all" and samples is None:
        raise ParameterError(f"search={search} needs samples: how many combinations to draw", "search", "samples")
    if search == "optuna" and find_spec("optuna") is None:
        raise ValueError("search=optuna needs the package optuna: pip install optuna")
    if "epochs" in grid:
        raise ParameterError("grid cannot vary epochs: runs are compared after the same number of epochs", "grid")


def _entries(config: Config, grid: Grid, out: Path) -> list[Entry]:
    """A run for every combination."""
    from offramp.study.ledger import label

    result = []
    for point, variant in variants(config, grid, methods=True).items():
        run_entries.check_one_process(variant)
        resolved = resolve(variant)
        method = label(flat(resolved))
        result.append(
            Entry(method, resolved, out / run_entries.folder_name(resolved.method, resolved.seed, point), point)
        )
    return result


def _check_val(entries: Sequence[Entry]) -> None:
    if any(entry.inputs is None or not entry.inputs.val for entry in entries):
        raise ParameterError(
            "a sweep selects the best run on val, but nothing is held out: holdout must be above 0", "holdout"
        )


def _run(
    cluster: "Cluster",
    entries: Sequence[Entry],
    grid: Mapping[str, Sequence[str]],
    score: RunScore,
    folder: Path,
    about: Mapping[str, Any],
    jobs: Jobs,
    reporter: CompareReporter,
    keep_open: int,
) -> list["Trial"]:
    from offramp.engine import tune

    ledger = folder / LEDGER
    _add_missing(entries, folder)
    work = {entry.point: _job(entry, folder, ledger, reporter) for entry in entries}
    waiting = [entry for entry in entries if work[entry.point].commands]
    if jobs == "auto":  # the nodes of a cluster are not measured
        jobs = runs_at_once(waiting, folder, reporter, keep_open) if len(cluster.nodes) == 1 else 1
    epochs = entries[0].config.epochs
    total = about["samples"] or len(entries)
    search = tune.Search(
        grid,
        about["samples"],
        about["search"] == "optuna",
        about["scheduler"] == "asha",
        epochs,
        entries[0].config.seed,
    )
    reporter.begin(total, min(total, len(entries) - len(waiting)), epochs)
    try:
        return tune.run(cluster, work, search, score, folder, jobs, reporter)
    finally:
        reporter.stop()


def _job(entry: Entry, out: Path, ledger: Path, reporter: CompareReporter) -> "Job":
    """What is left to do for a run; without commands if nothing is."""
    from offramp.engine.local import Job

    job = job_of(entry, out, ledger, reporter.note)
    if job is None:
        log = out / "logs" / f"{entry.folder.name}.log"
        job = Job(entry.name, ENTRY, [], entry.folder, log, log.with_suffix(".json"), _nothing)
    return dataclasses.replace(job, name=entry.point)


def _nothing() -> None:
    """Nothing is to be done for a run that is finished."""


def _add_missing(entries: Sequence[Entry], out: Path) -> None:
    """Add lines of runs that were evaluated when this process was killed."""
    from offramp.study.ledger import append, holds
    from offramp.train.run_dir import read_result

    for entry in entries:
        answer = out / "logs" / f"{entry.folder.name}.json"
        result = read_result(entry.folder)
        if result is None or not answer.is_file() or holds(out / LEDGER, flat(entry.config), result):
            continue
        try:
            line = json.loads(answer.read_text())
        except ValueError:
            continue
        append(out / LEDGER, line)


def _result(
    metric: str, entries: Mapping[str, Entry], trials: Sequence["Trial"], score: RunScore, folder: Path
) -> SweepResult:
    by_point = {trial.point: _trial(entries[trial.point], trial, score) for trial in trials}
    ordered = sorted(by_point.values(), key=lambda one: (one.stopped, one.failure is not None, -(one.score or 0.0)))
    best = next((one for one in ordered if not one.stopped and one.failure is None), None)
    device = next(iter(entries.values())).config.device
    return SweepResult(metric, best, ordered, str(folder / LEDGER), device)


def _trial(entry: Entry, trial: "Trial", score: RunScore) -> SweepTrial:
    from offramp.train import log
    from offramp.train.run_dir import METRICS

    records = log.read(entry.folder / METRICS, "epoch")
    last = records[-1] if records else None
    return SweepTrial(
        run=str(entry.folder),
        options=dict(pair.split("=", 1) for pair in _pairs(entry.point)),
        epochs=len(records),
        stopped=trial.stopped,
        val_accuracy=last["val_accuracy"] if last else None,
        score=score(entry.point, last) if last else None,
        failure=trial.failure,
    )


def _pairs(point: str) -> list[str]:
    """The parts OPTION=VALUE of a point's name."""
    return point.split(",")
