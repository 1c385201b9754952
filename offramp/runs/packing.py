"""How many runs at once, with how many threads each: what trains them soonest, by a few steps that are measured."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

from offramp.cores import cores
from offramp.engine import gpus, local
from offramp.engine.local import Job, Unwatched, Watcher
from offramp.engine.preloaded import THREADS
from offramp.files import read_json
from offramp.lookup import ParameterError
from offramp.runs.run_entries import Entry
from offramp.train.run_dir import CONFIG, put

Jobs = int | Literal["auto"]
CHOICE = "packing.json"
"""In the logs of a folder of runs: what was measured, so that resumed runs keep their number of threads."""
WORTH = 50
"""Steps to train for every number of runs that is tried: for fewer, nothing is measured."""
ALIKE = 1.05
"""Times that differ by less count as equal; then more runs at once are taken, whose evaluation and start overlap."""
MEMORY, GPU_MEMORY = 0.8, 0.6
"""Shares of the available memory that runs may take; images on a GPU are not measured."""
PROCESS_MIB = 1024.0
"""What a run is taken to need if nothing is measured."""


@dataclass(frozen=True)
class Capacity:
    """What runs share: cores, GPUs (none for runs on the CPU), memory that is available in MiB, if it is known."""

    cores: int
    gpus: int
    mib: float | None


@dataclass(frozen=True)
class StepTime:
    """A step of several runs at once: median seconds, and the MiB that a run takes of the host and of a GPU."""

    seconds: float
    mib: float = 0.0
    gpu_mib: float = 0.0
    gpu_total_mib: float = 0.0


def check_jobs(jobs: Jobs) -> None:
    """Refuse values that are neither `auto` nor a number of runs."""
    if jobs != "auto" and (not isinstance(jobs, int) or jobs < 1):
        raise ParameterError(f"jobs must be auto or at least 1, got {jobs}", "jobs")


def runs_at_once(waiting: Sequence[Entry], out: Path, watcher: Watcher, keep_open: int) -> int:
    """The number of runs at once on this machine that finishes all soonest; measured once for a folder.

    Args:
        waiting: what is left to train; the first one is measured.
        out: folder of the runs.
    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    if len(waiting) < 2:
        return 1
    machine = this_machine(waiting[0].config.device == "cuda")
    kept = _kept(out / "logs" / CHOICE, machine)
    if kept is not None:
        return kept
    tried = candidates(len(waiting), machine, _user_threads())
    if len(tried) == 1 or _steps(waiting) < WORTH * len(tried):
        return max((jobs for jobs in tried if _fits(jobs, StepTime(0.0, PROCESS_MIB), machine)), default=1)
    watcher.note(f"measuring a few steps of {' and '.join(map(str, tried))} runs at once")
    times: dict[int, StepTime] = {}
    for jobs in tried:
        if times and not _fits(jobs, next(iter(times.values())), machine):
            break
        measured = _measure(waiting, jobs, out, watcher, keep_open)
        if measured is None:
            break
        times[jobs] = measured
    chosen = best(times, len(waiting))
    _keep(out / "logs" / CHOICE, chosen, times, machine)
    seconds = ", ".join(f"{one.seconds:.3g} s a step of each of {jobs}" for jobs, one in times.items())
    watcher.note(f"{chosen} at once{f' ({seconds})' if seconds else ''}")
    return chosen


def this_machine(gpu: bool) -> Capacity:
    """The machine of this process."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").is_file() else ""
    mib = float(text.split("MemAvailable:")[1].split()[0]) / 2**10 if "MemAvailable:" in text else None
    return Capacity(cores(), max(1, len(gpus.visible())) if gpu else 0, mib)


def candidates(waiting: int, machine: Capacity, threads: int | None) -> list[int]:
    """Numbers of runs at once that are worth trying, rising.

    Args:
        threads: the most that a run may take; None for no limit.
    """
    most = min(waiting, machine.cores)
    least = machine.gpus or (1 if threads is None else max(1, machine.cores // threads))
    numbers = [least * 2**power for power in range(4 if machine.gpus else most.bit_length() + 1)]
    if not machine.gpus:
        numbers.append(most)
    return sorted({min(number, most) for number in numbers})


def best(times: Mapping[int, StepTime], waiting: int) -> int:
    """The number of runs at once that finishes `waiting` equal runs soonest; of nearly equal ones the largest."""
    if not times:
        return 1
    total = {jobs: ceil(waiting / jobs) * measured.seconds for jobs, measured in times.items()}
    return max(jobs for jobs, seconds in total.items() if seconds <= ALIKE * min(total.values()))


def _fits(jobs: int, one: StepTime, machine: Capacity) -> bool:
    """Whether this many runs fit into memory."""
    if machine.mib is not None and jobs > 1 and jobs * one.mib > MEMORY * machine.mib:
        return False
    return not machine.gpus or ceil(jobs / machine.gpus) * one.gpu_mib <= GPU_MEMORY * one.gpu_total_mib


def _measure(waiting: Sequence[Entry], jobs: int, out: Path, watcher: Watcher, keep_open: int) -> StepTime | None:
    """Steps of this many runs at once; None if one fails."""
    first, logs = waiting[0], out / "logs"
    assert first.inputs is not None
    shape, classes = "x".join(map(str, first.inputs.shape)), str(first.inputs.classes)
    words = [str(first.folder / CONFIG), shape, classes]
    names = [f"packing-{number}" for number in range(jobs)]

    def job(name: str) -> Job:
        return Job(
            name, "offramp.runs.step_time:main", [words], out, logs / f"{name}.log", logs / f"{name}.json", _nothing
        )

    started = [job(name) for name in names]
    if not local.run(started, jobs, Unwatched(), keep_open):
        raise KeyboardInterrupt
    answers = [one.answer.read_text() for one in started]
    failed = any(one.failure for one in started)
    for one in started:
        one.answer.unlink()
        one.log.unlink()
    if failed:
        return None
    values = [json.loads(text) for text in answers]
    seconds = statistics.fmean(statistics.median(one["seconds"]) for one in values)
    return StepTime(seconds, *(max(one[key] for one in values) for key in ("mib", "gpu_mib", "gpu_total_mib")))


def _nothing() -> None:
    """Nothing is to be done when steps were measured."""


def _steps(waiting: Sequence[Entry]) -> int:
    """Steps of all runs together."""
    return sum(entry.config.epochs * entry.inputs.steps for entry in waiting if entry.inputs)


def _user_threads() -> int | None:
    text = os.environ.get(THREADS, "")
    return int(text) if text.isdecimal() and int(text) else None


def _kept(path: Path, machine: Capacity) -> int | None:
    """What was chosen before for this folder on such a machine."""
    values: dict[str, Any] = read_json(path, {"jobs": int, "cores": int, "gpus": int}) if path.is_file() else {}
    same = (values.get("cores"), values.get("gpus")) == (machine.cores, machine.gpus)
    return values["jobs"] if same else None


def _keep(path: Path, chosen: int, times: Mapping[int, StepTime], machine: Capacity) -> None:
    seconds = {str(jobs): one.seconds for jobs, one in times.items()}
    values = {"jobs": chosen, "cores": machine.cores, "gpus": machine.gpus, "seconds_per_step": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, json.dumps(values, indent=1) + "\n")
