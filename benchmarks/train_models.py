"""Training speed of common networks: `offramp train` compared with the best of four plain PyTorch loops.

    python benchmarks/train_models.py [--minutes 8] [--networks NAME,NAME] [--batch 16] [--tiny] [--json]

Steps: forward pass, cross-entropy, backward pass and SGD on one batch in memory, of nine networks of timm at 96 to 224
pixels. The plain loops use fp32 or bf16 autocast, each contiguous and in channels_last. offramp runs its training loop
with the network cut into stages (`vanilla`), in the precision that `--precision auto` chooses on this machine. All five
take their steps in turn in one process, on one thread per core, so that other work on the machine slows all of them;
the shortest times are compared. Target: at least 1.0 times the speed of the best plain loop (0.98 is within the noise),
1.25 times with depthwise convolutions.

Whole epochs over a folder of JPEGs of 256 pixels, measured in turn: timm's loader (its own transforms and workers, with
the best plain loop), and offramp with images decoded once and with `--streaming`. Target: 1.5 times as fast as timm.

With --json, one JSON line per network and one for the epochs is printed. `--tiny` makes everything small.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from train_speed import Silent

from offramp.config import Config, build_method, build_net, resolve
from offramp.data import load
from offramp.data.loading import Loader
from offramp.data.splits import ArraySource, DataSet, Split
from offramp.measure.provenance import provenance
from offramp.optional import vision
from offramp.train.device import make_fabric
from offramp.train.fastest import Settings, fastest
from offramp.train.loop import Loop
from offramp.train.numerics import cpu_threads

SIZES = {
    "resnet18": 96,
    "resnet50": 96,
    "mobilenetv3_small_100": 128,
    "tf_efficientnet_lite0": 96,
    "efficientnet_b0": 128,
    "convnext_atto": 96,
    "regnety_002": 128,
    "densenet121": 96,
    "vit_tiny_patch16_224": 224,
}
"""Networks of timm with the side of their images in pixels."""
CLASSES, LR, DECAY = 20, 0.001, 5e-4
PLAIN = {
    f"{precision} {layout}": (precision == "bf16", layout == "channels_last")
    for precision in ("fp32", "bf16")
    for layout in ("contiguous", "channels_last")
}
END_TO_END = "tf_efficientnet_lite0"
Step = Callable[[], None]


class Size(NamedTuple):
    """Sizes of the measurements."""

    pixels: int
    batch: int
    images: int


def created(name: str, pixels: int) -> torch.nn.Module:
    """A network created by timm."""
    more = {"img_size": pixels} if name.startswith("vit") else {}
    torch.manual_seed(0)
    model: torch.nn.Module = vision("timm").create_model(name, num_classes=CLASSES, **more)
    return model.train()


def trainer(name: str, pixels: int, form: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A plain training step of one of the four forms: (inputs, labels) -> None."""
    half, last = PLAIN[form]
    layout = torch.channels_last if last else torch.contiguous_format
    model = created(name, pixels).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=DECAY)

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(inputs.contiguous(memory_format=layout))
        cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def offramp_loop(name: str, data: DataSet, size: Size, folder: Path) -> tuple[Loop, Settings]:
    """The training loop of `offramp train`, and the settings that it chose."""
    config = resolve(
        Config(net=f"timm:{name}", method="vanilla", batch_size=size.batch, lr=LR, weight_decay=DECAY, device="cpu")
    )
    method = build_method(config)
    net = build_net(config, method, classes=CLASSES, shape=data.shape, check=False)
    samples = 10**6  # as in a run that is long enough for a measurement
    settings = fastest(net, config, samples, data.shape, CLASSES)[0]
    chosen: Any = settings._asdict()
    config = dataclasses.replace(config, **chosen)
    loop = Loop(make_fabric(config), folder, config, net, method, data, Silent())
    loop.context.net.train()
    return loop, settings


def random_data(size: Size) -> DataSet:
    """Random images of one batch."""
    shape = (3, size.pixels, size.pixels)
    pixels = np.random.default_rng(0).integers(0, 256, (size.batch, *shape), dtype=np.uint8)
    source = ArraySource("random", tuple(map(str, range(CLASSES))), np.arange(size.batch) % CLASSES, pixels)
    split = Split(source, np.arange(size.batch), "train")
    return DataSet("random", {"train": split}, source.classes, shape, (0.5,) * 3, (0.25,) * 3, "none")


def in_turn(sides: dict[str, Step], end: float, least: int) -> dict[str, float]:
    """The shortest seconds of every variant, in rounds until the time ends; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    while len(next(iter(seconds.values()))) <= least or time.monotonic() < end:
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(values[1:]) for name, values in seconds.items()}


def steps_of(name: str, size: Size, end: float, least: int, folder: Path) -> dict[str, Any]:
    """Seconds of a training step, of offramp and of the plain loops."""
    loop, settings = offramp_loop(name, random_data(size), size, folder)
    batch = next(loop.batches.train.epoch(0))

    def ours() -> None:
        with cpu_threads(settings.threads):
            loop.step(batch, 0.0)

    sides: dict[str, Step] = {"offramp": ours}
    for form in PLAIN:
        step = trainer(name, size.pixels, form)
        sides[form] = lambda step=step: step(batch.inputs, batch.labels)  # type: ignore[misc]
    seconds = in_turn(sides, end, least)
    best = min(PLAIN, key=seconds.__getitem__)
    return {
        "network": name,
        "pixels": size.pixels,
        "batch": size.batch,
        **settings._asdict(),
        "ms": {side: 1000 * value for side, value in seconds.items()},
        "best_plain": best,
        "offramp_vs_best_plain": seconds[best] / seconds["offramp"],
    }


def photographs(folder: Path, images: int) -> None:
    """JPEGs of 256 pixels in one folder per class: smooth noise, which compresses like photographs."""
    draw = np.random.default_rng(0)
    for number in range(images):
        place = folder / f"class-{number % CLASSES:02d}"
        place.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((256, 256), Image.BICUBIC)
        grain = draw.integers(-12, 13, (256, 256, 3))
        pixels = np.clip(np.asarray(noise, np.int16) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=90)


def epoch_of(loop: Loop) -> Step:
    """An epoch of offramp's training, with loading."""
    numbers = iter(range(10**9))

    def epoch() -> None:
        for batch in loop.batches.train.epoch(next(numbers)):
            loop.step(batch, 0.0)

    return epoch


def timm_epoch(folder: Path, size: Size, form: str) -> Step:
    """An epoch of a plain loop with timm's loader: as many workers as cores, its random-resized crop and flip."""
    timm_data = vision("timm.data")
    loader = timm_data.create_loader(
        timm_data.create_dataset("", str(folder)),
        input_size=(3, size.pixels, size.pixels),
        batch_size=size.batch,
        is_training=True,
        use_prefetcher=False,
        no_aug=False,
        color_jitter=None,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    step = trainer(END_TO_END, size.pixels, form)

    def epoch() -> None:
        for inputs, labels in loader:
            step(inputs, labels)

    return epoch


def epochs_of(size: Size, form: str, end: float, least: int, folder: Path) -> dict[str, Any]:
    """Images per second of whole epochs over a folder of JPEGs."""
    photographs(folder / "photos", size.images)
    sides: dict[str, Step] = {"timm": timm_epoch(folder / "photos", size, form)}
    counts = {"timm": size.images // size.batch * size.batch}
    for name, streaming in (("offramp", False), ("offramp streaming", True)):
        data = load(
            f"folder:{folder / 'photos'}",
            image_size=size.pixels,
            holdout=0.0,
            streaming=streaming,
            cache_dir=folder / "cache",
            augmentation="random-resized-crop",
        )
        loop, _ = offramp_loop(END_TO_END, data, size, folder)
        sides[name], counts[name] = epoch_of(loop), _images(loop.batches.train)
    seconds = in_turn(sides, end, least)
    speed = {name: counts[name] / value for name, value in seconds.items()}
    result = {f"{name}_vs_timm": speed[name] / speed["timm"] for name in sides if name != "timm"}
    return {"network": END_TO_END, "end_to_end": speed, "pixels": size.pixels, "plain": form, **result}


def _images(loader: Loader) -> int:
    """Images of an epoch, without a last batch of one image."""
    return min(len(loader.split), len(loader) * loader.batch_size)


def results(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A result per network, then that of the epochs; every part has its share of the minutes."""
    end = time.monotonic() + 60 * options.minutes
    names = options.networks.split(",") if options.networks else list(SIZES)
    least, best = (1, "fp32 channels_last") if options.tiny else (2, "fp32 channels_last")
    for left, name in zip(range(len(names), 0, -1), names, strict=True):
        pixels = 64 if options.tiny and not name.startswith("vit") else SIZES.get(name, 224)
        now = time.monotonic()
        size = Size(pixels, 2 if options.tiny else options.batch, 0)
        line = steps_of(name, size, now + (end - now) / (left + 2), least, folder)
        best = line["best_plain"] if name == END_TO_END else best
        yield line
    size = Size(64 if options.tiny else 96, 8 if options.tiny else 32, 40 if options.tiny else 640)
    yield {**epochs_of(size, best, end, 1, folder), "provenance": provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="approximate total minutes")
    parser.add_argument("--networks", help="names of timm networks, comma-separated; default: nine networks")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tiny", action="store_true", help="small images and batches, to test the script itself")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in results(options, Path(folder)):
            if options.json:
                print(json.dumps({"benchmark": "train_models", **line}), flush=True)
            elif "ms" in line:
                times = ", ".join(f"{side} {value:.0f}" for side, value in line["ms"].items())
                print(f"{line['network']:22} {line['offramp_vs_best_plain']:.2f} ({line['precision']}; ms: {times})")
            else:
                speeds = ", ".join(f"{side} {value:.0f}" for side, value in line["end_to_end"].items())
                print(f"images/s from JPEGs: {speeds}")


if __name__ == "__main__":
    main()
