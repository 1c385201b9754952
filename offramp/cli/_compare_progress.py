"""Progress of several runs in the terminal: a line for each run in progress, and one for all of them."""

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from offramp.cli._console import stderr, working
from offramp.engine.local import Job
from offramp.measure.text_table import prose
from offramp.text import quantity
from offramp.train.run_dir import METRICS

TAIL = 2**20
"""Bytes at the end of metrics.jsonl that are searched for the last epoch."""


class CompareProgress:
    """The reporter of a comparison; at most 80 columns wide, for names of usual length."""

    def __init__(self, show: bool) -> None:
        self.quiet, self.live = not show, show and stderr.is_terminal
        self.epochs = self.runs = self.ended_runs = 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[state]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
            speed_estimate_period=24 * 3600,  # an epoch may take longer than rich's 30 seconds
        )
        self.total: TaskID | None = None
        self.tasks: dict[str, TaskID] = {}
        self.began: dict[str, float] = {}

    def begin(self, runs: int, finished: int, epochs: int) -> None:
        """Show the number of runs, of which `finished` are finished already."""
        self.runs, self.ended_runs, self.epochs = runs, finished, epochs
        before = f", {finished} of them finished before" if finished else ""
        self.note(f"{quantity(runs, 'run')} of {quantity(epochs, 'epoch')}{before}")
        if self.live and finished < runs:
            self.total = self.bar.add_task("all runs", total=(runs - finished) * epochs, state=f"{finished}/{runs}")
            self.bar.start()

    def started(self, job: Job) -> None:
        """A run began."""
        self.began[job.name] = time.monotonic()
        if self.live:
            self.tasks[job.name] = self.bar.add_task(_short(job.name), total=self.epochs, state="starts")
        else:
            self.note(f"{job.name}: started, log in {job.log}")

    def running(self, job: Job) -> None:
        """Move the bars to the last epoch that the run has recorded."""
        if not self.live:
            return
        epoch, exits = last_epoch(job.folder)
        state = f"{epoch}/{self.epochs}" + (f" val % {exits}" if exits else "")
        if epoch:
            self.bar.update(self.tasks[job.name], completed=epoch, state=state[:34])
        self._move()

    def ended(self, job: Job) -> None:
        """Print a line with the result of the run."""
        self.ended_runs += 1
        seconds = time.monotonic() - self.began[job.name]
        epoch, exits = last_epoch(job.folder)
        end = f"stopped after {quantity(epoch, 'epoch')}" if job.stopped else f"done in {seconds:.0f} s"
        text = f"failed: {job.failure}" if job.failure else end + f", val % {exits}" * bool(exits)
        self.note(prose(f"{job.name}: {text}"))
        if self.live:
            self.bar.update(self.tasks[job.name], completed=self.epochs, visible=False)
            self._move()

    def _move(self) -> None:
        if self.total is not None:
            done = sum(task.completed for task in self.bar.tasks if task.id != self.total)
            self.bar.update(self.total, completed=done, state=f"{self.ended_runs}/{self.runs}")

    def note(self, text: str) -> None:
        """One line beside the bars."""
        if not self.quiet:
            console: Any = self.bar.console if self.live else stderr
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def working(self, text: str, total: int) -> AbstractContextManager[Any]:
        """A bar for work that counts samples, before the runs start."""
        return working(text, total, self.live)

    def stop(self) -> None:
        """Remove the bars."""
        if self.total is not None:
            self.bar.stop()


def last_epoch(folder: Path) -> tuple[int, str]:
    """The last epoch in a run's metrics.jsonl, counted from 1 (0: none yet), and the accuracies on val in percent."""
    path = folder / METRICS
    if not path.is_file():
        return 0, ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if line.startswith(b'{"kind": "epoch"'):
            record = json.loads(line)
            return record["epoch"] + 1, " ".join(f"{100 * share:.1f}" for share in record["val_accuracy"] or ())
    return 0, ""


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"
