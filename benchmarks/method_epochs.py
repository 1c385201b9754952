"""Trains several methods in turn, an epoch at a time, each in a process of its own; part of methods.py."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.data.splits import ArraySource, DataSet, Split
from offramp.measure.memory import peak_mib
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

CLASSES, SHAPE = 100, (3, 32, 32)
SCRIPT = Path(__file__).with_name("methods.py")


def images(train: int, held: int) -> DataSet:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (train + held, *SHAPE), dtype=np.uint8)
    labels = draw.integers(0, CLASSES, train + held)
    source = ArraySource("benchmark", tuple(map(str, range(CLASSES))), labels, pixels)
    order = np.arange(train + held)
    splits = {"train": Split(source, order[:train], "train"), "val": Split(source, order[train:], "val")}
    return DataSet("benchmark", splits, source.classes, SHAPE, (0.5,) * 3, (0.25,) * 3, "crop-flip")


class InTurn:
    """The reporter of a run that trains an epoch for every line of input, and writes its seconds and peak memory."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        sys.stdin.readline()

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None: ...

    def epoch_done(self, record: dict[str, Any]) -> None:
        print(record["epoch"], (record["seconds"] - self.seconds) / self.steps, peak(), flush=True)
        self.seconds = record["seconds"]
        sys.stdin.readline()

    def note(self, text: str) -> None: ...


def build(method: str, options: Any, width: int, epochs: int = 1) -> tuple[Config, Any, nn.Module]:
    torch.manual_seed(0)
    recipe = {"epochs": epochs, "batch_size": options.batch, "device": options.device}
    config = resolve(Config(method=method, width=width, **recipe))
    built = build_method(config)
    net = build_net(config, built, classes=CLASSES, shape=SHAPE)
    prepare_objective(built, net, SHAPE)
    return config, built, net


def work(method: str, options: Any) -> None:
    """Train by this method, one epoch for every line of the input. The first line of the output lists its phases."""
    phases = len(build_method(resolve(Config(method=method))).phases)
    config, built, net = build(method, options, options.width, epochs=phases * (options.rounds + 1))
    data = images(options.batch * options.steps, options.batch)
    freezes = {"freezes": True} if phases > 1 else {}
    with tempfile.TemporaryDirectory() as folder:
        fabric = make_fabric(config, **freezes)
        loop = Loop(fabric, Path(folder), config, net, built, data, InTurn(options.steps))
        whole = sum(span.phase.share for span in loop.spans)
        print(json.dumps([[span.first, span.epochs, span.phase.share / whole] for span in loop.spans]), flush=True)
        loop.run(resume=False)


def peak() -> float:
    """MiB: largest size of this process so far, or, on a GPU, of its tensors."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_mib()


class Worker:
    """A method that trains in a process of its own, one epoch per request."""

    def __init__(self, method: str, options: Any) -> None:
        words = [sys.executable, str(SCRIPT), "--only", method]
        words += [f"--{name}={getattr(options, name)}" for name in ("width", "batch", "rounds", "steps", "device")]
        self.method = method
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: dict[int, float] = {}
        self.memory = 0.0

    def ready(self) -> None:
        self.spans = json.loads(self._line())
        self.left = sum(epochs for _, epochs, _ in self.spans)

    def epoch(self) -> None:
        assert self.process.stdin
        if self.left:
            print("go on", file=self.process.stdin, flush=True)
            epoch, seconds, memory = self._line().split()
            self.seconds[int(epoch)], self.memory = float(seconds), float(memory)
            self.left -= 1

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.method} ended early; see why: python benchmarks/methods.py --only {self.method}")
        return line

    def step(self) -> float:
        """Seconds of a step: the medians of the phases, weighted by their shares; the first epoch warms up."""
        seconds = 0.0
        for first, epochs, share in self.spans:
            counted = [self.seconds[epoch] for epoch in range(first + min(1, epochs - 1), first + epochs)]
            seconds += share * statistics.median(counted)
        return seconds

    def close(self) -> None:
        self.process.communicate("\n")


def group(names: list[str], options: Any) -> dict[str, tuple[float, float]]:
    """{method: (seconds of a step, peak MiB)} of methods that are measured in turn."""
    workers = [Worker(name, options) for name in names]
    for worker in workers:
        worker.ready()
    while any(worker.left for worker in workers):
        for worker in workers:
            worker.epoch()
    for worker in workers:
        worker.close()
    return {worker.method: (worker.step(), worker.memory) for worker in workers}
