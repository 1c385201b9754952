"""Weak scaling of training on this machine: images per second of one process, and of two that train one network.

    python benchmarks/weak_scaling.py [--json] [--rounds 5] [--steps 4] [--width 16] [--batch 64]
    python benchmarks/weak_scaling.py --model [--json]

Every process has one thread and 64 samples per step; `efficiency` is the images per second of two processes divided by
twice those of one. Both variants take their steps in turn. With two cores, this shows the cost of averaging gradients
over loopback (gloo) between two processes that share caches and memory; it says nothing about networks, GPUs or more
processes. `--model` instead prints the calculation of `offramp.measure.scaling_model` for 1 to 64 GPUs, which is not a
measurement.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from workers import Worker, work

from offramp.branches import sketch
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.measure import cost, scaling_model
from offramp.measure.provenance import provenance
from offramp.measure.timing import medians, side_by_side
from offramp.models import resnet
from offramp.net import attach, plain
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

CLASSES, PER_EPOCH = 100, 8
GPUS = (1, 2, 4, 8, 16, 32, 64)


def steps(processes: int, width: int, batch: int) -> Iterator[None]:
    """Trains one step per item, in all processes of the run; the first process decides when to go on."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    common = {"net": "resnet18", "width": width, "method": "joint", "data": "cifar100", "device": "cpu"}
    config = resolve(Config(**common, devices=processes, batch_size=batch * processes))  # type: ignore[arg-type]
    data, method = patterns(batch * processes * PER_EPOCH, 8, CLASSES, 32), build_method(config)
    net = build_net(config, method, classes=CLASSES, shape=data.shape)
    prepare_objective(method, net, data.shape)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(make_fabric(config), Path(folder), config, net, method, data, SilentReporter())
        go = torch.ones(1)
        try:
            while True:
                for samples in loop.batches.train.epoch(0):
                    if processes > 1:
                        dist.broadcast(go, 0)
                    if not go:
                        return
                    loop.position.step = 0
                    loop.step(samples, 0.0)
                    yield
        finally:
            if processes > 1 and dist.get_rank() == 0:
                dist.broadcast(go.zero_(), 0)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of one and of two processes."""
    options = ["--width", arguments.width, "--batch", arguments.batch]
    workers = {number: Worker(__file__, "--only", number, *options) for number in (1, 2)}
    runs = {str(number): partial(worker.steps, arguments.steps) for number, worker in workers.items()}
    seconds = medians(side_by_side(runs, arguments.rounds, warm_up=1))
    for worker in workers.values():
        worker.close()
    speed = {number: arguments.batch * int(number) * arguments.steps / value for number, value in seconds.items()}
    return {
        "images_per_second": speed,
        "efficiency": speed["2"] / (2 * speed["1"]),
        "cores": len(os.sched_getaffinity(0)),
        **{name: getattr(arguments, name) for name in ("width", "batch", "rounds", "steps")},
    }


def modelled() -> dict[str, Any]:
    """The calculated step of ResNets with and without early exits, by number of GPUs."""
    table: dict[str, Any] = {}
    for name, classes, side, samples in (("resnet18", 100, 32, 128), ("resnet50", 1000, 224, 128)):
        shape = (3, side, side)
        for exits in (False, True):
            backbone = resnet.build(name, classes=classes, form="cifar" if side == 32 else "imagenet")
            net = attach(backbone, partial(sketch.build, classes=classes)) if exits else plain(backbone)
            parameters, macs = cost.parameters(net).total, cost.macs_cumulative(net, shape)[-1]
            key = f"{name} on {side} pixels, {samples} per GPU, {net.exits} exit(s)"
            rows = [row(gpus, scaling_model.step(parameters, macs, samples, gpus)) for gpus in GPUS]
            table[key] = {"parameters": parameters, "macs": macs, "steps": rows}
    return {"model": table, "note": "a model, not a measurement"}


def row(gpus: int, step: scaling_model.StepCost) -> dict[str, float]:
    """A step in milliseconds and megabytes."""
    times = {"compute_ms": step.compute, "exchange_ms": step.exchange, "exposed_ms": step.exposed}
    milliseconds = {name: 1e3 * value for name, value in times.items()}
    return {"gpus": gpus, "sent_mb": step.volume / 1e6, **milliseconds, "efficiency": step.efficiency}


def show(result: dict[str, Any]) -> None:
    """Print the result as text."""
    for number, speed in result.get("images_per_second", {}).items():
        print(f"{number} process(es) {speed:9.1f} images/s")
    if "efficiency" in result:
        print(f"efficiency {result['efficiency']:.3f} on {result['cores']} cores")
    for name, each in result.get("model", {}).items():
        print(f"{name}: {each['parameters']:,} parameters, {each['macs']:,} multiply-adds")
        for row in each["steps"]:
            print("  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))


def main() -> None:
    """Measure, or print the calculation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument(
        "--model", action="store_true", help="print a calculation for many GPUs instead of a measurement"
    )
    for name, default in (("rounds", 5), ("steps", 4), ("width", 16), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", type=int, choices=(1, 2), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only and os.environ.get("LOCAL_RANK", "0") != "0":
        for _ in steps(arguments.only, arguments.width, arguments.batch):
            pass
        return
    if arguments.only:
        work(steps(arguments.only, arguments.width, arguments.batch), "cpu")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    result = {"benchmark": "weak_scaling", **(modelled() if arguments.model else measured(arguments)), **provenance()}
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    sys.exit(main())
