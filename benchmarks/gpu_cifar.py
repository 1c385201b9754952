"""ResNet18 with `beed` exits, trained with `beed` on all 50,000 images of CIFAR-100 for 200 epochs on one GPU.

    OFFRAMP_DATA=... python benchmarks/gpu_cifar.py [--epochs 200] [--out runs/gpu-cifar] [--json]

The same command continues an interrupted run. The data are on the GPU, in channels_last and bf16; every step is one
CUDA graph, and with --compile the network is compiled. Printed are the accuracy of every exit and of the ensemble after
the last epoch, with those of the BEED supplement (77.55 / 79.42 / 80.33 / 80.58, ensemble 81.45); the seconds of the
run; and images/s, also divided by those of a plain PyTorch loop on the same GPU (target: 6 times). Target on an H200:
at most eight minutes, including compilation.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data-dir", type=Path, help="default: $OFFRAMP_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-cifar"))
    parser.add_argument("--compile", action="store_true", help="compile the network as well")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_cifar needs a CUDA GPU and PyTorch sees none here; on a CPU, see benchmarks/train_speed.py")
    began = time.perf_counter()
    trained = train(configuration(options.epochs, options.data_dir, compile=options.compile), options.out, resume=True)
    seconds = time.perf_counter() - began
    tested = asdict(evaluate(trained, data_dir=options.data_dir, batch_size=256))
    from train_speed import speeds

    rates, _ = speeds(64, rounds=5, steps=20, compile=options.compile)
    images = 50_000 * options.epochs / trained.seconds
    result: dict[str, Any] = {
        "benchmark": "gpu_cifar",
        "seconds_this_time": seconds,
        "seconds_training": trained.seconds,
        "images_per_second": images,
        "side_by_side": rates,
        "offramp_vs_plain": rates["offramp"] / rates["plain"],
        "paper": PAPER,
        **tested,
    }
    if options.json:
        print(json.dumps(result))
        return
    for exit, (ours, paper) in enumerate(zip(tested["accuracy"], PAPER["accuracy"], strict=True), 1):
        print(f"exit {exit}: {100 * ours:.2f} % (BEED supplement {paper:.2f})")
    print(f"ensemble: {100 * tested['ensemble']:.2f} % (BEED supplement {PAPER['ensemble']:.2f})")
    print(f"{seconds:.0f} s this time, {trained.seconds:.0f} s of training in all, {images:,.0f} images/s")
    print(
        f"side by side: offramp {rates['offramp']:,.0f} images/s, plain {rates['plain']:,.0f}: "
        f"{result['offramp_vs_plain']:.2f} times (target 6)"
    )


if __name__ == "__main__":
    main()
