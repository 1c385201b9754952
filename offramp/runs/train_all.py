"""The runs of a comparison: what is not yet in the ledger is trained, evaluated and added to it."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from offramp.config import flat
from offramp.engine import local
from offramp.engine.choice import Engine
from offramp.engine.local import Job, Watcher
from offramp.lookup import with_parameters
from offramp.progress import Advance, no_progress
from offramp.runs import comparison_folder, run_entries
from offramp.runs.grid import NO_GRID, Grid
from offramp.runs.packing import Jobs, runs_at_once
from offramp.runs.run_entries import Entry

PATIENCE = 20.0
"""Seconds to wait for runs of a comparison that was killed and are still saving."""
ENTRY = "offramp.cli:main"
"""What runs the commands of a child process."""
PRELOAD = (
    *("torch", "torch._dynamo", "lightning_fabric", "safetensors.torch", "yaml", "rich.progress", "cyclopts"),
    *("offramp.cli.train", "offramp.cli.evaluate", "offramp.runs.train", "offramp.runs.evaluate", "offramp.train.loop"),
)
"""What every run imports."""
SLOW = ("pyarrow.parquet", "timm", "torchvision", "transformers")
"""What takes long to import and only some runs need; the check of the runs has imported what they need."""


@runtime_checkable
class CompareReporter(Watcher, Protocol):
    """Receives the progress of a comparison's runs."""

    def begin(self, runs: int, finished: int, epochs: int) -> None:
        """How many runs there are, how many are finished already, and the epochs of each."""

    def working(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """As `offramp.runs.reporting.Reporter.working`."""

    def stop(self) -> None:
        """No run is running any more."""


class SilentCompare:
    """A reporter that shows nothing."""

    def begin(self, runs: int, finished: int, epochs: int) -> None:
        """Ignored."""

    def started(self, job: Job) -> None:
        """Ignored."""

    def running(self, job: Job) -> None:
        """Ignored."""

    def ended(self, job: Job) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

    def working(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Shows nothing."""
        return no_progress(text, total)

    def stop(self) -> None:
        """Ignored."""


def check_writable(ledger: Path) -> None:
    """Refuse a ledger that is no file, or in a folder that cannot be written."""
    if ledger.exists() and not ledger.is_file():
        raise with_parameters(ValueError(f"ledger {ledger} is not a file"), "ledger")
    parent = next(path for path in (ledger, *ledger.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise ValueError(f"{ledger} cannot be written: there is no permission for {parent}")


def train_all(
    requested: list[Entry],
    out: Path,
    jobs: Jobs,
    ledger: Path,
    reporter: CompareReporter,
    grid: Grid = NO_GRID,
    shared: Mapping[str, Any] | None = None,
    engine: Engine = local,
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Train and evaluate the runs that are missing in the ledger.

    Args:
        jobs: number of runs at a time; `auto`: the number that finishes all runs soonest, from a few measured steps.
        grid: the other options, besides method and seed, in which the runs differ.
        shared: the configuration that identifies this folder; default: the options that all runs share.
        engine: where they run.
    Returns:
        All runs, and the names of failed runs with the reason.
    Raises:
        KeyboardInterrupt: after Ctrl-C, when every run has saved itself.
    """
    comparison_folder.check_folder(out)
    with local.preloading(PRELOAD) if _trains_here(requested, engine) else nullcontext():
        entries, notes = run_entries.check(requested, reporter.working)
        for note in notes:
            reporter.note(note)
        out.mkdir(parents=True, exist_ok=True)
        engine.check(out, any(entry.config.device == "cuda" for entry in entries))
        with local.locked_folder(out / ".lock", PATIENCE, reporter.note) as lock:
            comparison_folder.claim(out, entries, run_entries.shared_by(entries, grid) if shared is None else shared)
            complete, failed = _run(entries, out, jobs, ledger, reporter, engine, lock.fileno())
    if not complete:
        reporter.note(f"saved in {out}; the same command continues")
        raise KeyboardInterrupt
    return entries, failed


def _trains_here(requested: Sequence[Entry], engine: Engine) -> bool:
    """Whether there is anything to train in processes of this machine."""
    from offramp.train.run_dir import RESULT

    return engine is local and any(not (entry.folder / RESULT).is_file() for entry in requested)


def _run(
    entries: Sequence[Entry],
    out: Path,
    jobs: Jobs,
    ledger: Path,
    reporter: CompareReporter,
    engine: Engine,
    keep_open: int,
) -> tuple[bool, list[dict[str, str]]]:
    """Run what is left to do; returns whether all had their turn, and what failed."""
    todo = [(entry, job) for entry in entries if (job := job_of(entry, out, ledger, reporter.note))]
    waiting = [job for _, job in todo]
    if jobs == "auto":  # the nodes of a cluster are not measured
        ours = engine is local
        jobs = runs_at_once([entry for entry, _ in todo], out, reporter, keep_open) if ours else 1
    reporter.begin(len(entries), len(entries) - len(waiting), max(entry.config.epochs for entry in entries))
    try:
        complete = engine.run(waiting, jobs, reporter, keep_open)
    finally:
        reporter.stop()
    return complete, [{"run": job.name, "reason": job.failure} for job in waiting if job.failure]


def job_of(entry: Entry, out: Path, ledger: Path, note: Callable[[str], None]) -> Job | None:
    """What is left to do for a run: train, evaluate, add its line to the ledger; None if nothing is."""
    from offramp.study.ledger import append, holds, lists
    from offramp.train.run_dir import CONFIG, begun, read_result

    config, folder = entry.config, entry.folder
    result = read_result(folder)
    if result is not None and holds(ledger, flat(config), result):
        return None
    if not begun(folder) and lists(ledger, flat(config)):
        note(f"{entry.name}: has its line in {ledger}; to train it again, choose another ledger")
        return None
    place = ["--data-dir", str(config.data_dir)] if config.data_dir else []
    train = ["train", "--config", str(folder / CONFIG), "--out", str(folder), "--resume", *place]
    train += ["--checkpoint-every", str(config.checkpoint_every)]
    train += ["--tensorboard" if config.tensorboard else "--no-tensorboard"]
    train += ["--log-accuracy", ",".join(config.log_accuracy)] if config.log_accuracy else []
    evaluate = ["evaluate", str(folder), *place, "--device", config.device, "--frontier", "--json"]
    logs = out / "logs"
    answer = logs / f"{folder.name}.json"

    def done() -> None:
        append(ledger, json.loads(answer.read_text()))

    commands = [evaluate] if result is not None else [train, evaluate]
    preload = (*PRELOAD, *(name for name in SLOW if name in sys.modules))
    log = logs / f"{folder.name}.log"
    return Job(entry.name, ENTRY, commands, folder, log, answer, done, config.device == "cuda", preload)
