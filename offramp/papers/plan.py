"""What is left to train, and what that costs on this machine, by a step of every training that is measured here."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offramp.config import Config, ResolvedConfig, resolve
from offramp.papers.catalog import Protocol, Training, config_of
from offramp.progress import Progress, no_progress
from offramp.runs.run import Device
from offramp.runs.step_time import step_times

SHAPES = {"digits": ((1, 8, 8), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
IMAGES = {"digits": 1438, "cifar10": 50_000, "cifar100": 50_000}
IMAGENET = 1_281_167
STEPS = 2
"""Steps that are measured of every training, after one that warms up."""
MEASURED_PIXELS = 16 * 32 * 32
"""Pixels of a batch that is measured on a CPU (16 images of CIFAR); costs are taken to be in proportion to it."""


@dataclass(frozen=True)
class PlannedTraining:
    """A training with seeds that the ledger lacks, and its cost.

    Attributes:
        training: its name.
        missing: seeds to train.
        present: seeds that the ledger has.
        epochs: of every run.
        step_seconds: of one step, measured here; None if nothing is left to train.
        hours: of all missing seeds one after the other, without evaluation; None likewise.
        needs: what it needs beside the data of the others.
    """

    training: str
    missing: list[int]
    present: list[int]
    epochs: int
    step_seconds: float | None
    hours: float | None
    needs: str


def planned(
    trainings: Sequence[Training],
    present: dict[str, list[int]],
    seeds: Sequence[int],
    protocol: Protocol,
    progress: Progress = no_progress,
    device: Device = "auto",
) -> list[PlannedTraining]:
    """What is left to train of every training, with measured costs.

    Args:
        present: seeds in the ledger, by name.
        progress: called as steps are measured.
        device: that would train.
    """
    result = []
    with progress("measuring steps", len(trainings)) as advance:
        for one in trainings:
            config = config_of(one, protocol, device=device)
            lines = present.get(one.name, [])
            missing = [seed for seed in seeds if seed not in lines]
            step = step_seconds(resolve(config)) if missing else None
            hours = step * steps(config) * len(missing) / 3600 if step is not None else None
            needs = (
                "ImageNet in the data directory, as imagenet/train and imagenet/val"
                if config.data not in SHAPES
                else ""
            )
            result.append(PlannedTraining(one.name, missing, lines, config.epochs, step, hours, needs))
            advance(1)
    return result


def steps(config: Config) -> int:
    """Steps of a whole run."""
    _, classes = _shape(config)
    images = IMAGES.get(config.data, IMAGENET)
    used = min(images, config.per_class * classes) if config.per_class else images
    trained = used - round(config.holdout * images)
    return config.epochs * max(1, -(-trained // config.batch_size))


def step_seconds(config: ResolvedConfig) -> float:
    """Seconds of one optimizer step, the median of a few on random images, on the device that would train."""
    shape, classes = _shape(config)
    batch = _batch(config, shape)
    if config.method_options.get("fixed") is not None:  # loss weights change no cost
        config = _replaced(config, fixed=None, meta_every=0)
    times = step_times(config, shape, classes, batch=batch, steps=STEPS)
    return statistics.median(times) * config.batch_size / batch


def _replaced(config: ResolvedConfig, **options: Any) -> ResolvedConfig:
    return dataclasses.replace(config, method_options={**config.method_options, **options})


def _shape(config: Config) -> tuple[tuple[int, int, int], int]:
    size = config.image_size or 224
    return SHAPES.get(config.data, ((3, size, size), 1000))


def _batch(config: ResolvedConfig, shape: tuple[int, int, int]) -> int:
    if config.device == "cuda":
        return config.batch_size
    return max(4, min(config.batch_size, MEASURED_PIXELS // (shape[1] * shape[2])))
