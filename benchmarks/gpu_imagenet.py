"""What limits the speed of training on images of ImageNet's size: reading and decoding, augmentation, or the step.

    python benchmarks/gpu_imagenet.py [--json] [--images 20000] [--seconds 20] [--net resnet50] [--folder FOLDER]
    python benchmarks/gpu_imagenet.py --device cpu --tiny        # tests the script itself

Measured are images per second of each alone, and of `train`, in which they overlap. `decode` reads, decodes and crops
JPEGs (the streaming loader up to pixels on the device). `augment` augments the same batch of pixels on the device again
and again. `step` is the training loop's step on one batch (with --graph, it includes augmentation). `limited_by` names
the slowest of the three; the rate of `train` divided by its rate states how well they overlap (target: 0.95). The
images are those of benchmarks/data.py. Not yet measured on a GPU.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count as counting
from pathlib import Path
from typing import Any

import torch
from data import CLASSES, make

from offramp.config import Config, build_method, build_net, complete, prepare_objective, resolve
from offramp.measure.provenance import provenance
from offramp.measure.timing import finish
from offramp.outputs import Batch
from offramp.testing import SilentReporter
from offramp.train.device import make_fabric
from offramp.train.loop import Loop
from offramp.train.numerics import computing

PARTS = ("decode", "augment", "step")
WARM_UP = 3


def loop(root: Path, run: Path, options: argparse.Namespace) -> Loop:
    """The training loop of `offramp train`, on these images."""
    size, batch = (64, 8) if options.tiny else (224, options.batch)
    network: dict[str, Any] = {"net": options.net, "width": 4 if options.tiny else None, "method": "joint"}
    images: dict[str, Any] = {"data": f"folder:{root}", "image_size": size, "streaming": True, "holdout": 0.0}
    images["data_options"] = {"cache_dir": str(root / ".cache")}
    config = Config(**network, **images, batch_size=batch, device=options.device, graph=options.graph)
    completed = complete(resolve(config))
    method, data = build_method(completed.config), completed.data
    net = build_net(completed.config, method, classes=len(data.classes), shape=data.shape)
    prepare_objective(method, net, data.shape)
    return Loop(make_fabric(completed.config), run, completed.config, net, method, data, SilentReporter())


def parts(training: Loop) -> dict[str, Iterator[int]]:
    """The parts to measure: each yields the number of images of one batch after another."""
    loader = training.batches.train
    bounds = [loader._bounds(step) for step in range(len(loader))]

    def pixels() -> Iterator[torch.Tensor]:
        for epoch in counting():
            yield from loader.store.batches(loader.ids, bounds, loader.seed, epoch)

    def decode() -> Iterator[int]:
        for batch in pixels():
            yield len(batch)

    def augment() -> Iterator[int]:
        batch = next(pixels())
        while True:
            yield len(loader.to_inputs(Batch(batch, ids := loader.ids[: len(batch)], ids)).ids)

    def stepped(batches: Callable[[], Iterator[Any]]) -> Iterator[int]:
        for batch in batches():
            training.position.step = 0
            training.step(batch, 0.0)
            yield len(batch.ids)

    def same() -> Iterator[Any]:
        batch = next(training.read(0))
        while True:
            yield batch

    def real() -> Iterator[Any]:
        for epoch in counting():
            yield from training.read(epoch)

    return {"decode": decode(), "augment": augment(), "step": stepped(same), "train": stepped(real)}


def rate(batches: Iterator[int], seconds: float, device: torch.device) -> float:
    """Images per second, after some batches that are not timed."""
    for _ in range(WARM_UP):
        next(batches)
    finish(device)
    began, images = time.perf_counter(), 0
    while not images or time.perf_counter() - began < seconds:
        images += next(batches)
    finish(device)
    return images / (time.perf_counter() - began)


def measured(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The rates, and which part is the slowest."""
    with tempfile.TemporaryDirectory() as run:
        training = loop(root, Path(run), options)
        training.context.net.train()
        device = training.fabric.device
        with computing(training.recipe, device, training=True):  # as in `Loop.run`
            speeds = {name: rate(batches, options.seconds, device) for name, batches in parts(training).items()}
    limit = min(PARTS, key=lambda name: speeds[name])
    about = {"net": options.net, "tiny": options.tiny, "seconds": options.seconds}
    overlap = speeds["train"] / speeds[limit]
    return {"images_per_second": speeds, "limited_by": limit, "train_vs_limit": overlap, "device": device.type, **about}


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per part")
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--graph", action="store_true", help="run every step as one CUDA graph")
    parser.add_argument("--folder", type=Path, help="folder of images that `benchmarks/data.py --only-make` created")
    parser.add_argument("--tiny", action="store_true", help="few images and a small network, to test the script itself")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        root = options.folder or Path(place)
        if not options.folder:
            make(root, 2 * CLASSES if options.tiny else options.images, torch.get_num_threads())
        result = {"benchmark": "gpu_imagenet", **measured(root, options), **provenance(options.device)}
    if options.json:
        print(json.dumps(result))
        return
    for name, speed in result["images_per_second"].items():
        print(f"{name:8} {speed:9.1f} images/s")
    print(f"limited by {result['limited_by']}; train / that {result['train_vs_limit']:.2f} (wanted: 0.95)")


if __name__ == "__main__":
    main()
