"""Training speed of a four-exit ResNet18: a plain PyTorch loop, `offramp train`, and the step of the network alone.

    python benchmarks/train_speed.py [--json] [--rounds 5] [--steps 2] [--width 64]

(i) plain: fp32, NCHW, per-image PIL augmentation in a DataLoader with two workers. (ii) offramp: `offramp train` with
its defaults. (iii) bare: forward, backward and optimizer step of the same network in the precision of (ii), on one
batch in memory, without losses, data, logging or Fabric. `beed` exits, batch 128, CIFAR shapes.

Each runs in a process of its own, and they take their steps in turn, so that other work on the machine slows all of
them. Compared are medians, and the peak memory of each process (without the plain loop's data workers; on a GPU, the
memory allocated there). Targets on two AVX512-BF16 cores: (ii) at least 2.3 times the images/s of (i), at least 0.95 of
(iii), and no more memory than (i).
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset
from workers import Worker, work

from offramp.branches import beed as exits
from offramp.config import Config, build_method, prepare_objective, resolve
from offramp.data.splits import ArraySource, DataSet, Split
from offramp.measure.provenance import provenance
from offramp.measure.timing import medians, side_by_side
from offramp.models import resnet
from offramp.net import MultiExitNet, attach
from offramp.outputs import Batch
from offramp.train.device import make_fabric, precision_of
from offramp.train.loop import Loop
from offramp.train.numerics import computing
from offramp.train.recipe import Recipe

BATCH, CLASSES = 128, 100
SAMPLES = 80 * BATCH
"""Whole batches alone: a smaller last one would be counted as a whole one."""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Images(Dataset):  # type: ignore[type-arg]
    """Per-image PIL augmentation, as in the papers' scripts."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.pixels[index].transpose(1, 2, 0)), 4)
        left, top = np.random.randint(0, 9, 2)
        image = image.crop((left, top, left + 32, top + 32))
        if np.random.rand() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = torch.from_numpy(np.array(image, np.float32).transpose(2, 0, 1) / 255)
        return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], int(self.labels[index])


def network(width: int) -> MultiExitNet:
    torch.manual_seed(0)
    trunk = resnet.build("resnet18", classes=CLASSES, width=width)
    return attach(trunk, lambda backbone, exit: exits.build(backbone, exit, CLASSES))


def sgd(net: nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=fused)


def objective() -> Callable[..., dict[str, torch.Tensor]]:
    objective: Any = build_method(resolve(Config(method="beed", branch="beed"))).objective
    return objective


def plain_loop(width: int, device: str, pixels: np.ndarray, labels: np.ndarray, workers: int = 2) -> Generator[None]:
    """(i): an iterator whose every `next` is one step."""
    net, terms = network(width).to(device), objective()
    optimizer = sgd(net)
    loader = DataLoader(
        Images(pixels, labels),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        for inputs, truth in loader:
            batch = Batch(inputs.to(device), truth.to(device), truth.to(device))
            loss = sum(terms(net(batch.inputs), batch, 0.0).values())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
            yield


def offramp_loop(
    width: int,
    device: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    compile: bool,
    graph: bool | None = None,
    method: str = "beed",
    notes: list[str] | None = None,
) -> Generator[None]:
    """(ii): the loop of `offramp train` with its defaults; what it says is added to `notes`."""
    source = ArraySource("benchmark", tuple(map(str, range(CLASSES))), labels, pixels)
    split = Split(source, np.arange(len(pixels)), "train")
    splits = {"train": split, "val": Split(source, np.arange(len(pixels) // 10), "val")}
    data = DataSet("benchmark", splits, source.classes, source.shape, MEAN, STD, "crop-flip")
    recipe = Recipe(batch_size=BATCH, device="cuda" if device == "cuda" else "cpu", compile=compile, graph=graph)
    built, net = build_method(resolve(Config(method=method, branch="beed"))), network(width)
    prepare_objective(built, net, source.shape)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_fabric(recipe), Path(folder), recipe, net, built, data, Silent(notes))
        loop.context.net.train()
        with computing(recipe, loop.fabric.device, training=True):  # as in `Loop.run`
            while True:
                for batch in loop.read(0):
                    loop.step(batch, 0.0)
                    yield


class Silent:
    def __init__(self, notes: list[str] | None = None) -> None:
        self.notes = [] if notes is None else notes

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None: ...

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None: ...

    def epoch_done(self, record: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def bare_loop(width: int, device: str, pixels: np.ndarray, compile: bool, fused: bool | None = None) -> Generator[None]:
    """(iii): only the network and its optimizer."""
    net = network(width).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(net, fused)
    run = torch.compile(net) if compile else net
    inputs = torch.from_numpy(pixels[:BATCH]).to(device).float().div(255).contiguous(memory_format=torch.channels_last)
    low = precision_of("auto", device) == "bf16"
    with computing(Recipe(), torch.device(device), training=True):
        while True:
            with torch.autocast(device, torch.bfloat16, enabled=low):
                logits = run(inputs).logits
            logits.float().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield


def loops(width: int, device: str, compile: bool) -> dict[str, Callable[[], Generator[None]]]:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (SAMPLES, 3, 32, 32), dtype=np.uint8)
    labels = draw.integers(0, CLASSES, SAMPLES)
    return {
        "plain": lambda: plain_loop(width, device, pixels, labels),
        "offramp": lambda: offramp_loop(width, device, pixels, labels, compile),
        "bare": lambda: bare_loop(width, device, pixels, compile),
    }


def speeds(width: int, rounds: int, steps: int, compile: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Median images per second of each loop, and its peak memory in MiB."""
    more = ["--compile"] if compile else []
    workers = {name: Worker(__file__, "--only", name, "--width", width, *more) for name in ("plain", "offramp", "bare")}
    runs = {name: partial(worker.steps, steps) for name, worker in workers.items()}
    seconds = medians(side_by_side(runs, rounds, warm_up=1))
    memory = {name: worker.steps(0) for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {name: BATCH * steps / value for name, value in seconds.items()}, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="compile the network in (ii) and (iii)")
    parser.add_argument("--only", choices=("plain", "offramp", "bare"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.only:
        work(loops(options.width, device, options.compile)[options.only](), device)
        return
    speed, memory = speeds(options.width, options.rounds, options.steps, options.compile)
    result = {
        "benchmark": "train_speed",
        "images_per_second": speed,
        "peak_memory_mib": memory,
        "offramp_vs_plain": speed["offramp"] / speed["plain"],
        "offramp_vs_bare": speed["offramp"] / speed["bare"],
        "memory_vs_plain": memory["offramp"] / memory["plain"],
        "width": options.width,
        "compile": options.compile,
        "precision": precision_of("auto", device),
        "rounds": options.rounds,
        **provenance(),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, value in speed.items():
        print(f"{name:8} {value:9.1f} images/s   {memory.get(name, float('nan')):8.0f} MiB at most")
    print(f"offramp / plain {result['offramp_vs_plain']:.2f} (target 2.3)")
    print(f"offramp / bare {result['offramp_vs_bare']:.3f} (target 0.95)")
    print(f"memory of offramp / plain {result['memory_vs_plain']:.2f} (target at most 1)")


if __name__ == "__main__":
    main()
