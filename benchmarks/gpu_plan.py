"""The parts of `gpu_all.py` and `gpu_cifar.py`, the time limit, and how steps are timed."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import train_speed

from offramp.cuda_graphs import capture
from offramp.runs.reporting import Silent

ROOT = Path(__file__).parents[1]


class TimeEnded(BaseException):
    """The time limit is reached; not an Exception, which libraries may catch."""


@dataclasses.dataclass
class Plan:
    """Device, sizes, folder of the runs, and time limit of the part that is being measured."""

    device: str
    tiny: bool
    folder: Path
    data: dict[str, Any]
    end: float

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


class Quiet(Silent):
    """Prints nothing, not even the warning that accuracies on cal and test differ: networks are hardly trained.

    What a run says, such as why it takes no graph, is kept in `notes`.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        pass


def bounded(command: Sequence[str], seconds: float, **how: Any) -> None:
    """Run a command for at most this long; whatever it has started ends with it."""
    process = subprocess.Popen(command, start_new_session=True, **how)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(1.0, seconds))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tested(words: list[str], plan: Plan) -> dict[str, Any]:
    """Run pytest; results of tests that ended before the time did are kept.

    A warning is no error here: other versions of PyTorch and of CUDA have warnings of their own.
    """
    log, how = plan.folder / "tests.txt", ["-vv", "-rfE", "--tb=short", "-W", "default", "-p", "no:cacheprovider"]
    limit = f"--session-timeout={max(1.0, 0.9 * plan.left):.0f}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        command = [sys.executable, "-m", "pytest", *how, limit, *words]
        bounded(command, plan.left - 2, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)
    text = log.read_text(errors="replace")
    ended = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)", text, re.MULTILINE)
    counts = Counter(outcome for _, outcome in ended)
    failed = [name for name, outcome in ended if outcome in ("FAILED", "ERROR")]
    right = counts["PASSED"] and not failed
    last = text.strip().rpartition("\n")[2]
    return {"counts": dict(counts), "failed": failed, "summary": last, "output": "" if right else text[-20_000:]}


def attempt(measure: Callable[[], Any]) -> Any:
    """What a measurement returns; if it fails, why, since the others count."""
    try:
        return measure()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:500]}"


def random_images(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of random images of CIFAR's size."""
    draw, samples = np.random.default_rng(0), 4 * train_speed.BATCH if plan.tiny else train_speed.SAMPLES
    pixels = draw.integers(0, 256, (samples, 3, 32, 32), dtype=np.uint8)
    return pixels, draw.integers(0, train_speed.CLASSES, samples)


def bare_step(width: int, device: str, pixels: np.ndarray) -> Generator[None]:
    """The bare step of the network, on a GPU as one CUDA graph: as fast as its kernels can be started."""
    steps = train_speed.bare_loop(width, device, pixels, False, fused=True)
    if device != "cuda":
        yield from steps
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            next(steps)
    torch.cuda.current_stream().wait_stream(stream)
    with capture(torch.device("cuda")) as graph:
        next(steps)
    while True:
        graph.replay()
        yield


def no_gpu() -> str:
    """Why there is no GPU, in words."""
    return "this PyTorch was built without CUDA" if torch.version.cuda is None else "PyTorch sees none here"


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rate(steps: Generator[None], plan: Plan, images: int = train_speed.BATCH) -> float:
    """Images per second, after warming up; `steps`, and the settings of PyTorch that it made, end here."""
    warm, counted = (1, 1) if plan.tiny else (30, 200)
    with closing(steps):
        for _ in range(warm):
            next(steps)
        finish(plan.device)
        began = time.perf_counter()
        for _ in range(counted):
            next(steps)
        finish(plan.device)
        return counted * images / (time.perf_counter() - began)
