"""The parts of `gpu_all.py`, its time limit, and how it times steps."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import train_speed

from offramp.runs.reporting import Silent


class TimeEnded(Exception):
    """The time limit is reached."""


@dataclasses.dataclass
class Plan:
    """Device, sizes, folder of the runs, and time limit of the measurements."""

    device: str
    tiny: bool
    folder: Path
    data: dict[str, Any]
    end: float

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


class Quiet(Silent):
    """Prints nothing, not even the warning that accuracies on cal and test differ: networks are hardly trained."""

    def warn(self, text: str) -> None:
        pass


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rate(steps: Iterator[None], plan: Plan, images: int = train_speed.BATCH) -> float:
    """Images per second, after warming up."""
    warm, counted = (1, 1) if plan.tiny else (30, 200)
    for _ in range(warm):
        next(steps)
    finish(plan.device)
    began = time.perf_counter()
    for _ in range(counted):
        next(steps)
    finish(plan.device)
    return counted * images / (time.perf_counter() - began)
