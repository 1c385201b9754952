"""Several jobs at once, each in a process of its own that ends when the one that started it ends."""

import importlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from offramp.cores import cores
from offramp.engine import gpus
from offramp.engine.preloaded import THREADS, Forked, Preloaded, Task

LONGEST_SAVING = 120.0
"""Seconds that a run may take to save itself after the process that started it is gone."""


@dataclass
class Job:
    """Commands to run one after the other in one process, and how they ended.

    Attributes:
        name: what the user calls the job.
        entry: `module:function` that runs one command; it takes its words.
        commands: the words of each.
        folder: where the job writes its results; the engine does not look into it.
        log: file that standard error is appended to.
        answer: file that standard output is written to.
        done: called in the process that started the job when all commands have succeeded.
        needs_gpu: for engines that place jobs on machines.
        preload: modules that take long to import; they are imported once for all jobs.
        failure: None unless a command failed, then one sentence.
        stopped: whether the engine ended it early, because others were better.
        gpu: the only GPU that its process sees; None: those that are there.
    """

    name: str
    entry: str
    commands: list[list[str]]
    folder: Path
    log: Path
    answer: Path
    done: Callable[[], None]
    needs_gpu: bool = False
    preload: tuple[str, ...] = ()
    process: Forked | None = None
    failure: str | None = None
    stopped: bool = False
    interrupts: int = field(default=0)
    gpu: str | None = None


@runtime_checkable
class Watcher(Protocol):
    """Receives the progress of jobs."""

    def started(self, job: Job) -> None:
        """A job began."""

    def running(self, job: Job) -> None:
        """A job is running; called several times a second."""

    def ended(self, job: Job) -> None:
        """A job succeeded, or failed."""

    def note(self, text: str) -> None:
        """Something the user should know."""


def check(folder: Path, gpus: bool) -> None:
    """Nothing is refused: processes of this machine see what this process sees."""


def run(jobs: Sequence[Job], at_once: int, watcher: Watcher, keep_open: int) -> bool:
    """Run all jobs, at most `at_once` at a time, spread over the GPUs; one that fails does not stop the others.

    Ctrl-C (or a polite kill) is handed on, so that every run saves itself; a second one stops them at once.

    Args:
        keep_open: a file that every process holds open as long as it lives (see `locked_folder`).
    Returns:
        Whether all had their turn: False after Ctrl-C.
    """
    waiting, active, visible = deque(jobs), list[Job](), gpus.visible()
    with stopping(watcher) as stops, preloading() as origin:
        if jobs:
            origin.load([name for job in jobs for name in job.preload])
        try:
            while active or (waiting and not stops):
                while waiting and len(active) < at_once and not stops:
                    job = waiting.popleft()
                    job.gpu = gpus.least_loaded(visible, [other.gpu for other in active])
                    watcher.started(job)
                    _start(job, origin, at_once, keep_open)
                    active.append(job)
                for job in list(active):
                    _look(job, watcher, stops)
                    if job.process is None:
                        active.remove(job)
                time.sleep(0.1)
        finally:
            for job in active:
                if job.process is not None:
                    job.process.kill()
        return not stops


def _look(job: Job, watcher: Watcher, stops: list[int]) -> None:
    """Pass Ctrl-C on, and report when the job ends; a job that was stopped has not failed."""
    assert job.process is not None
    while job.interrupts < len(stops):
        job.process.send_signal(signal.SIGINT)
        job.interrupts += 1
    status = job.process.poll()
    if status is None:
        return watcher.running(job)
    job.process = None
    if status and stops:
        return None
    if status:
        job.failure = reason(job.log, status)
    else:
        job.done()
    return watcher.ended(job)


_origin: Preloaded | None = None


@contextmanager
def preloading(modules: Sequence[str] = ()) -> Iterator[Preloaded]:
    """Import modules in a process that all jobs in this context are forked from; within another context, use its own.

    They are imported while the caller continues.
    """
    global _origin
    if _origin is not None:
        yield _origin
        return
    _origin = Preloaded(modules)
    try:
        yield _origin
    finally:
        ended, _origin = _origin, None
        ended.close()


def _start(job: Job, origin: Preloaded, at_once: int, keep_open: int) -> None:
    """Start the job's process; it notices the end of this process by the end of its standard input."""
    paths = list(
        dict.fromkeys((str(Path(__file__).parents[2]), *filter(None, sys.path)))
    )  # it finds the modules that we find
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if job.gpu is not None:
        environment[gpus.VISIBLE] = job.gpu
    if at_once > 1:
        threads = max(1, cores() // at_once)
        environment[THREADS] = str(min(threads, _number(os.environ.get(THREADS), threads)))
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.open("ab").close()
    job.answer.open("wb").close()
    work = [job.entry, job.commands]
    files = {"output": str(job.answer.absolute()), "errors": str(job.log.absolute())}
    job.process = origin.fork(Task(f"{__name__}:child", work, str(Path.cwd()), paths, environment, **files), keep_open)


def child(work: tuple[str, list[list[str]]]) -> None:
    """The process of a job: its commands one after the other, unless the process that started it ends."""
    entry, commands = work
    module, _, function = entry.partition(":")
    run_command = getattr(importlib.import_module(module), function)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for words in commands:
        sys.argv = ["offramp", *words]  # the command that provenance records
        try:
            run_command(words)
        except SystemExit as left:
            if left.code:
                raise


def _end_with_parent() -> None:
    """Save and end when standard input ends."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(LONGEST_SAVING)
    os._exit(130)


class Unwatched:
    """A watcher that says nothing."""

    def started(self, job: Job) -> None:
        """Ignored."""

    def running(self, job: Job) -> None:
        """Ignored."""

    def ended(self, job: Job) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""


@contextmanager
def stopping(watcher: Watcher) -> Iterator[list[int]]:
    """Gives the list to which every Ctrl-C is added."""
    stops: list[int] = []

    def handle(signum: int, frame: Any) -> None:
        stops.append(signum)
        watcher.note("Ctrl-C: every run saves itself after its step (again: stop at once)")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def locked_folder(path: Path, wait: float, note: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """Hold the lock of a folder; processes that were given the open file hold it as well, as long as they live.

    Raises:
        ValueError: if it is still held after `wait` seconds.
    """
    import fcntl

    with path.open("ab") as file:
        end = time.monotonic() + wait
        announced = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ValueError(
                        f"another `offramp compare` or `reproduce` is running in {path.parent}: wait, or stop it first"
                    ) from None
            if not announced:
                note(f"{path.parent} is in use: waiting for runs that are still saving")
                announced = True
            time.sleep(0.1)
        yield file


def reason(log: Path, status: int) -> str:
    """Why a command failed: the last line it said, or the signal that ended it."""
    if status < 0:
        return f"it was killed by signal {-status}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("offramp: ") if lines else f"it ended with status {status}"


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() and int(text) else otherwise
