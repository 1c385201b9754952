"""ResNet18 with `beed` exits, trained with `beed` on all 50,000 images of CIFAR-100 for 200 epochs on one GPU.

    OFFRAMP_DATA=... python benchmarks/gpu_cifar.py [--epochs 200] [--out runs/gpu-cifar] [--json]
    python benchmarks/gpu_cifar.py --device cpu --tiny

The same command continues an interrupted run. The data are on the GPU, in channels_last and bf16; every step is one
CUDA graph; --compile compiles network and losses. Printed are the accuracy of every exit and of the ensemble after
the last epoch, with those of the BEED supplement (77.55 / 79.42 / 80.33 / 80.58, ensemble 81.45); the minutes from the
start of the process to the end of training (target on an H200: at most 8, aim at 5.5); images/s; and the images/s of
the same steps on random images, divided by those of a plain PyTorch loop on the same GPU (target: 6 times) and by those
of forward, backward and optimizer step alone as one CUDA graph (target: 0.95). `--tiny` makes everything small, to test
the script.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_targets
import torch
import train_speed
from gpu_plan import Plan, attempt, bare_step, no_gpu, random_images, rate

from offramp.config import Config
from offramp.runs.evaluate import evaluate
from offramp.runs.train import train

PAPER = {"accuracy": [77.55, 79.42, 80.33, 80.58], "ensemble": 81.45}


def configuration(
    epochs: int, data_dir: Path | None, *, graph: bool = True, compile: bool = False, device: str = "cuda"
) -> Config:
    """The recipe of EED and BEED on CIFAR-100, on all training images."""
    training: Any = {"epochs": epochs, "graph": graph, "compile": compile, "device": device, "precision": "bf16"}
    data: Any = {"data": "cifar100", "data_dir": data_dir, "holdout": 0.0, "checkpoint_every": 391 * 20}
    return Config(net="resnet18", branch="beed", method="beed", **data, **training)


def tiny(config: Config) -> Config:
    """The same with little to compute."""
    return dataclasses.replace(config, data="digits", width=4, epochs=1, batch_size=256, checkpoint_every=100)


def seconds_since_start() -> float:
    """Seconds that this process exists, imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def speeds(plan: Plan, compile: bool) -> dict[str, Any]:
    """Images per second of steps on random images: offramp's, a plain PyTorch loop's, the network's alone."""
    width = 4 if plan.tiny else 64
    pixels, labels = random_images(plan)
    ways = {
        "offramp": train_speed.offramp_loop(width, plan.device, pixels, labels, compile),
        "plain": train_speed.plain_loop(width, plan.device, pixels, labels, workers=0 if plan.tiny else 8),
        "bare": bare_step(width, plan.device, pixels),
    }
    return {name: attempt(lambda steps=steps: rate(steps, plan)) for name, steps in ways.items()}


def ratios(rates: dict[str, Any]) -> dict[str, float]:
    """offramp's images per second divided by those of the others, of what could be measured."""
    numbers = {name: rate for name, rate in rates.items() if isinstance(rate, float)}
    others = [name for name in ("plain", "bare") if {name, "offramp"} <= numbers.keys()]
    return {f"offramp_vs_{name}": numbers["offramp"] / numbers[name] for name in others}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate, and time steps beside others."""
    graph = options.device == "cuda"
    config = configuration(
        options.epochs, options.data_dir, graph=graph, compile=options.compile, device=options.device
    )
    trained = train(tiny(config) if options.tiny else config, options.out, resume=True)
    seconds = seconds_since_start()
    tested = evaluate(trained, data_dir=options.data_dir, batch_size=256, device=options.device)
    plan = Plan(options.device, options.tiny, options.out, {}, float("inf"))
    rates = speeds(plan, options.compile)
    beside = ratios(rates)
    at_once = options.epochs == 200 and not options.tiny and trained.seconds < seconds  # in this process alone
    minutes = seconds / 60 if at_once else None
    return {
        "benchmark": "gpu_cifar",
        "minutes_with_start": seconds / 60,
        "seconds_training": trained.seconds,
        "images_per_second": 50_000 * options.epochs / trained.seconds,
        "side_by_side": rates,
        **beside,
        "targets": gpu_targets.training(minutes, beside.get("offramp_vs_plain"), beside.get("offramp_vs_bare")),
        "paper": PAPER,
        **asdict(tested),
    }


def show(result: dict[str, Any]) -> None:
    for exit, (ours, paper) in enumerate(zip(result["accuracy"], PAPER["accuracy"], strict=True), 1):
        print(f"exit {exit}: {100 * ours:.2f} % (BEED supplement {paper:.2f})")
    print(f"ensemble: {100 * result['ensemble']:.2f} % (BEED supplement {PAPER['ensemble']:.2f})")
    print(f"{result['seconds_training']:.0f} s of training in all, {result['images_per_second']:,.0f} images/s")
    print(f"{result['minutes_with_start']:.2f} minutes this time, start included")
    for name, speed in result["side_by_side"].items():
        print(f"side by side: {name}:", f"{speed:,.0f} images/s" if isinstance(speed, float) else speed)
    print(*gpu_targets.lines(result["targets"]), sep="\n")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data-dir", type=Path, help="default: $OFFRAMP_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-cifar"))
    parser.add_argument("--compile", action="store_true", help="compile network and losses as well")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="little to compute, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"gpu_cifar needs a CUDA GPU, and {no_gpu()}; on a CPU, see benchmarks/train_speed.py")
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
