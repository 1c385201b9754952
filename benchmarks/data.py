"""Images per second from a folder of JPEGs of about 400 pixels to augmented, normalised batches of 224 pixels.

    python benchmarks/data.py [--json] [--images 100000] [--rounds 5] [--only-make FOLDER | --folder FOLDER]

Measured in turn, each in a process of its own, with one worker per core, batches of 128, random-resized crop
(bilinear, antialiased) and flip:

- torchvision: ImageFolder, transforms and a DataLoader, as in PyTorch's ImageNet example;
- timm: its dataset and `create_loader`, with the same augmentation;
- pillow, turbo: `folder:` of offramp with `--streaming`, decoding with Pillow (the default) or `--data.decoder turbo`
  (which uses nvImageCodec too, if it is installed);
- turbo-uint8: the same up to augmented uint8 pixels, which is the work of the CPU if a GPU normalises;
- decode-pillow, decode-turbo: only reading and decoding whole images, in one thread per core: the decoders' speed.

Each turn begins with batches that are not timed, because workers prepare them while another loader is measured. The
images are created once, in a temporary folder: those of CIFAR-100 (in $OFFRAMP_DATA; else noise), enlarged and with
texture added. Memory is that of turbo's main process: its maximum, and its value at the end divided by that after the
first turn. Targets: turbo is at least 1.5 times as fast as torchvision and timm, and at least 0.9 times as fast as
decode-turbo; memory grows by at most 5 %. On two cores, 10,000 images take about 3 minutes, 100,000 about 20.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count as counting
from pathlib import Path
from typing import Any

import jpeg_decoders
import numpy as np
import torch
from PIL import Image
from workers import Worker, work

from offramp.allocator import keep_freed_memory
from offramp.data import _jpeg_part
from offramp.data.load import NORMALISE, load
from offramp.data.loading import Loader
from offramp.measure.provenance import provenance
from offramp.optional import vision

BATCH, SIZE, CLASSES, UNTIMED = 128, 224, 100, 12
SIDES = ((400, 400), (500, 375), (375, 500), (400, 300))  # width, height
MEAN, STD = NORMALISE["imagenet"]
NAMES = ("torchvision", "timm", "pillow", "turbo", "turbo-uint8", "decode-pillow", "decode-turbo")


def originals(count: int) -> np.ndarray:
    """(N, 32, 32, 3): the images of CIFAR-100 if they are in $OFFRAMP_DATA, else noise."""
    if os.environ.get("OFFRAMP_DATA"):
        split = load("cifar100", holdout=0).splits["train"]
        return np.asarray(split.source.batch(split.indices[:count]).transpose(0, 2, 3, 1))
    return np.random.default_rng(0).integers(0, 256, (min(count, 1000), 32, 32, 3), dtype=np.uint8)


def texture(seed: int, side: int = 512) -> np.ndarray:
    """(side, side, 1): noise at several scales in grey levels, similar to the texture of photographs."""
    draw = np.random.default_rng(seed)
    noise = np.zeros((side, side), np.float32)
    for scale, strength in ((1, 6), (2, 10), (4, 14)):
        coarse = Image.fromarray(draw.normal(0, strength, (side // scale, side // scale)).astype(np.float32))
        noise += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return noise[..., None]


def make(root: Path, count: int, threads: int) -> None:
    """Writes root/train/CLASS/NUMBER.jpg, and one image of each class in root/test."""
    images, textures = originals(count), [texture(seed) for seed in range(16)]

    def write(number: int) -> None:
        width, height = SIDES[number % len(SIDES)]
        image = Image.fromarray(images[number % len(images)]).resize((width, height), Image.Resampling.BICUBIC)
        noise = np.roll(textures[number % 16], number % 512, axis=number % 2)[:height, :width]
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        split = "test" if number < CLASSES else "train"
        file = root / split / f"{number % CLASSES:03}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=90)

    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(write, range(count + CLASSES)), maxlen=0)


def with_torchvision(root: Path, workers: int) -> Iterator[Any]:
    folders, transforms = vision("torchvision.datasets"), vision("torchvision.transforms")
    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = folders.ImageFolder(str(root / "train"), transforms.Compose(steps))
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": True, "drop_last": True}
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, **options)
    while True:
        yield from loader


def with_timm(root: Path, workers: int) -> Iterator[Any]:
    data = vision("timm.data")
    options: dict[str, Any] = {"is_training": True, "color_jitter": 0.0, "interpolation": "bilinear", "hflip": 0.5}
    loader = data.create_loader(
        data.create_dataset("", root=str(root / "train"), is_training=True),
        (3, SIZE, SIZE),
        BATCH,
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=True,
        device=torch.device("cpu"),
        **options,
    )
    while True:
        yield from loader


def with_offramp(root: Path, workers: int, decoder: str, normalised: bool = True) -> Iterator[Any]:
    options: dict[str, Any] = {"image_size": SIZE, "holdout": 0, "check": "headers", "cache_dir": root / ".cache"}
    data = load(f"folder:{root}", streaming=True, decoder=decoder, **options)
    loader = Loader(data.splits["train"], data, batch_size=BATCH, augment=True, seed=0, channels_last=True)
    loader.store.workers = workers  # type: ignore[union-attr]
    for epoch in counting():
        yield from loader.epoch(epoch) if normalised else loader.raw(epoch)


def decoding(root: Path, workers: int, decode: Callable[[bytes], Any]) -> Iterator[None]:
    files = sorted((root / "train").rglob("*.jpg"))
    draw = np.random.default_rng(0)

    def one(index: int) -> None:
        decode(files[index].read_bytes())

    with ThreadPoolExecutor(workers) as pool:
        while True:
            deque(pool.map(one, draw.integers(0, len(files), BATCH)), maxlen=0)
            yield


def on_one_core(root: Path, images: int = 100, rounds: int = 5) -> dict[str, float]:
    """Milliseconds of each part on one thread, the shortest of some rounds; differences of pixels in grey levels."""
    import simplejpeg
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)
    pillow, turbo = jpeg_decoders.pillow(), jpeg_decoders.simplejpeg()
    encoded = [file.read_bytes() for file in sorted((root / "train").rglob("*.jpg"))[:images]]
    pixels = [pillow(data) for data in encoded]
    pictures = [Image.fromarray(each) for each in pixels]
    views = [torch.tensor(each).permute(2, 0, 1)[None, :, 40:260, 10:290] for each in pixels]
    fast = partial(simplejpeg.decode_jpeg, fastdct=True, fastupsample=True)
    runs: dict[str, Callable[[int], Any]] = {
        "decode_pillow": lambda i: pillow(encoded[i]),
        "decode_simplejpeg": lambda i: turbo(encoded[i]),
        "decode_simplejpeg_fast": lambda i: fast(encoded[i]),
        "resize_pillow": lambda i: pictures[i].resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(10, 40, 290, 260)),
        "resize_torch": lambda i: interpolate(views[i], (SIZE, SIZE), mode="bilinear", antialias=True),
    }
    result = {}
    for name, run in runs.items():
        seconds = []
        for _ in range(rounds):
            began = time.process_time()
            deque(map(run, range(len(encoded))), maxlen=0)
            seconds.append(time.process_time() - began)
        result[f"{name}_ms"] = 1000 * min(seconds) / len(encoded)
    for name, decode in (("simplejpeg", turbo), ("simplejpeg_fast", fast)):
        pairs = zip(pixels, map(decode, encoded), strict=True)
        result[f"{name}_most_levels"] = float(max(np.abs(one.astype(int) - other).max() for one, other in pairs))
    return result


def loops(root: Path, workers: int) -> dict[str, Callable[[], Iterator[Any]]]:
    return {
        "torchvision": lambda: with_torchvision(root, workers),
        "timm": lambda: with_timm(root, workers),
        "pillow": lambda: with_offramp(root, workers, "pillow"),
        "turbo": lambda: with_offramp(root, workers, "turbo"),
        "turbo-uint8": lambda: with_offramp(root, workers, "turbo", normalised=False),
        "decode-pillow": lambda: decoding(root, workers, jpeg_decoders.pillow()),
        "decode-turbo": lambda: decoding(root, workers, jpeg_decoders.simplejpeg()),
    }


def measured(root: Path, images: int, rounds: int, cores: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Images per second of every turn by name; memory at the end over memory after the first turn."""
    batches = max(1, images // rounds // BATCH)
    workers = {name: Worker(__file__, "--only", name, "--folder", root, "--cores", cores) for name in NAMES}
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    memory: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name, worker in workers.items():
            worker.steps(min(UNTIMED, batches))
            began = time.perf_counter()
            memory[name].append(worker.steps(batches))
            speeds[name].append(BATCH * batches / (time.perf_counter() - began))
    for worker in workers.values():
        worker.close()
    return speeds, {name: values[-1] / values[0] for name, values in memory.items()} | {"MiB": memory["turbo"][-1]}


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="folder of images that --only-make created")
    parser.add_argument(
        "--only-make", type=Path, metavar="FOLDER", help="create the images in this folder, without measuring"
    )
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args()


def everything(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of a benchmark on the images in a folder."""
    sizes = [file.stat().st_size for file in (root / "train").rglob("*.jpg")]
    speeds, memory = measured(root, arguments.images, arguments.rounds, arguments.cores)
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "benchmark": "data",
        "images": len(sizes),
        "mean_bytes": sum(sizes) / len(sizes),
        "images_per_second": middle,
        "turbo_vs_torchvision": middle["turbo"] / middle["torchvision"],
        "turbo_vs_timm": middle["turbo"] / middle["timm"],
        "pillow_vs_torchvision": middle["pillow"] / middle["torchvision"],
        "turbo_vs_its_decoder": middle["turbo"] / middle["decode-turbo"],
        "turbo_uint8_vs_its_decoder": middle["turbo-uint8"] / middle["decode-turbo"],
        "nvimagecodec": _jpeg_part.decoder() is not None,
        "memory_end_over_first_turn": memory["turbo"],
        "memory_mib": memory["MiB"],
        "rounds": arguments.rounds,
        "cores_used": arguments.cores,
        "one_core": on_one_core(root),
        **provenance(),
    }


def show(result: dict[str, Any]) -> None:
    """Print a record as text."""
    for name, value in result["images_per_second"].items():
        print(f"{name:14} {value:8.0f} images/s")
    for key in (key for key in result if "_vs_" in key):
        print(f"{key} {result[key]:.2f}")
    for name, value in result["one_core"].items():
        print(f"{name:28} {value:8.2f}")
    print(f"memory at the end over after the first turn {result['memory_end_over_first_turn']:.3f}")


def main() -> None:
    arguments = options()
    keep_freed_memory()
    if arguments.only:
        work(loops(arguments.folder, arguments.cores)[arguments.only](), "cpu")
        return
    if arguments.only_make:
        make(arguments.only_make, arguments.images, arguments.cores)
        return
    with tempfile.TemporaryDirectory() as place:
        if not arguments.folder:
            make(Path(place), arguments.images, arguments.cores)
        result = everything(arguments.folder or Path(place), arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
