"""Int8 compared with float32 in ONNX Runtime: the plain network in both, and int8 with early exit, at batch 1 and 64.

    python benchmarks/int8.py [RUN] [--data-dir DIR] [--threads 1] [--seconds 20] [--json]
    python benchmarks/int8.py --bundles PLAIN BUNDLE ... [--data-dir DIR] [--seconds 20] [--json]

RUN is a trained run, of which the exits and the images of cal are used. Without RUN, three networks with random weights
at 96 pixels and with `byot` exits are measured. Half of the images that reach an exit leave there, whatever their
scores, because this benchmark measures time only; `offramp export --int8` prints accuracies. The networks run
alternately in one process; times are medians in milliseconds per image. At most five minutes with the defaults.

With `--bundles`, bundles of `offramp export` run as they are, with their policies, on their test images: accuracy on
all of them, and times compared with those of the first bundle, such as the plain network in float32. Limit the threads
of ONNX Runtime with `taskset`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from offramp import evaluate_bundle
from offramp.bundle.merge_onnx import fuse
from offramp.bundle.onnx import export_segments
from offramp.bundle.quantise import quantised
from offramp.bundle.read import open_bundle
from offramp.bundle.sessions import ArraySegment, open_segment
from offramp.early_exit.fixed_stay import FixedStay
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import Stepper
from offramp.measure.provenance import provenance
from offramp.measure.timing import side_by_side
from offramp.net import MultiExitNet, segments
from offramp.runs.bundle_data import labelled_images
from offramp.runs.reporting import SILENT

NETWORKS = ("resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100")
BATCHES, RANGE_IMAGES, CLASSES = (1, 64), 64, 100


def random_net(name: str, pixels: int) -> tuple[MultiExitNet, np.ndarray]:
    """A network of timm with random weights, and random images for the ranges."""
    from offramp.config import Config, build_method, build_net, resolve

    torch.manual_seed(0)
    config = resolve(Config(net=f"timm:{name}", branch="byot", method="joint", image_size=pixels))
    net: Any = build_net(config, build_method(config), classes=CLASSES, shape=(3, pixels, pixels), check=False)
    return net, np.random.default_rng(0).standard_normal((RANGE_IMAGES, 3, pixels, pixels), np.float32)


def net_of_run(run: Path, data_dir: Path | None) -> tuple[MultiExitNet, np.ndarray]:
    """The network of a run, and images of cal for the ranges."""
    from offramp.bundle.write import preprocessing_of
    from offramp.runs import load_run
    from offramp.runs.reporting import SILENT
    from offramp.runs.run_data import load_data

    loaded = load_run(run, with_policy=False, device="cpu")
    data = load_data(loaded, data_dir, SILENT)
    cal = data.splits["cal"]
    return loaded.inference_net, preprocessing_of(data).normalise(cal.source.batch(cal.indices[:RANGE_IMAGES]))


def early(parts: Sequence[ArraySegment], inputs: np.ndarray) -> None:
    """Run a batch, half of whose images leave at each exit; with batch size 1, as many images as this needs."""
    exits, size = len(parts), len(inputs)
    if size == 1:
        for image in range(2 ** (exits - 1)):
            depth = exits - image.bit_length()  # one each at the last two exits, then 2, 4, ...
            through(parts[:depth], inputs)
        return
    policy = ExitPolicy(thresholds=(0.5,) * exits, enabled=(True,) * exits)
    stepper = Stepper(FixedStay(policy, {exit: size >> (exit + 1) for exit in range(exits)}), inputs)
    while not stepper.done:
        stepper.advance(parts[stepper.passed])


def through(parts: Sequence[ArraySegment], inputs: np.ndarray) -> None:
    """Run a batch through segments."""
    state: Any = inputs
    carry: Any = ()
    for part in parts:
        state, carry, _ = part(state, carry)


def measure(net: MultiExitNet, images: np.ndarray, threads: int, seconds: float) -> dict[str, Any]:
    """Milliseconds per image of each variant, by batch size, and ratios to the plain network in float32."""
    shape: Any = images.shape[1:]
    exported = list(export_segments(segments(net.eval().float().cpu()), range(net.exits), shape))
    models, parts = [model for model, _ in exported], [spec for _, spec in exported]
    int8 = quantised(models, parts, images)
    exits = [open_segment(model, spec, threads=threads) for model, spec in zip(int8, parts, strict=True)]
    plain = {
        name: open_segment(*fuse(each, parts), threads=threads) for name, each in (("float32", models), ("int8", int8))
    }
    result: dict[str, Any] = {}
    for size in BATCHES:
        inputs = np.resize(images, (size, *shape))
        runs = {f"plain {name}": partial(through, [segment], inputs) for name, segment in plain.items()}
        runs["early exit int8"] = partial(early, exits, inputs)
        images_of = dict.fromkeys(runs, size) | {"early exit int8": max(size, 2 ** (net.exits - 1) if size == 1 else 0)}
        once = sum(values[0] for values in side_by_side(runs, 1).values())
        times = side_by_side(runs, max(5, int(seconds / len(BATCHES) / once)), warm_up=0)
        ms = {name: 1000 * median(values) / images_of[name] for name, values in times.items()}
        result[str(size)] = {"ms": ms, "times_faster": {name: ms["plain float32"] / each for name, each in ms.items()}}
    return result


def measure_bundles(folders: Sequence[Path], data_dir: Path | None, seconds: float) -> dict[str, Any]:
    """Accuracy on test and milliseconds per image of bundles, by batch size, and ratios to the first bundle."""
    result: dict[str, Any] = {}
    for folder in folders:
        evaluation = evaluate_bundle(folder, data_dir=data_dir)
        result[folder.name] = {
            "precision": evaluation.precision,
            "accuracy": evaluation.early_exit.accuracy,
            "macs": evaluation.early_exit.macs,
            "shares": evaluation.shares,
        }
    opened = {folder.name: open_bundle(folder) for folder in folders}
    manifest = next(iter(opened.values())).manifest
    images = labelled_images(folders[0], manifest, None, {}, data_dir, SILENT)
    for size in BATCHES:
        draw, times = np.random.default_rng(0), {name: list[float]() for name in opened}
        end = time.monotonic() + seconds / len(BATCHES)
        while time.monotonic() < end:
            inputs = manifest.preprocessing.normalise(images.pixels(draw.choice(len(images.labels), 64, replace=False)))
            for name, bundle in opened.items():
                began = time.perf_counter()
                for start in range(0, len(inputs), size):
                    bundle.answer(inputs[start : start + size])
                times[name].append(1000 * (time.perf_counter() - began) / len(inputs))
        first = times[folders[0].name]
        for name, each in times.items():
            ratio = median(one / other for one, other in zip(first, each, strict=True))
            result[name][f"batch {size}"] = {"ms": median(each), "times_faster": ratio}
    return result


def main(words: Sequence[str] | None = None) -> None:
    """See the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of timm networks, used without RUN")
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="seconds per network")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    if options.bundles:
        measured = measure_bundles(options.bundles, options.data_dir, options.seconds)
        print(json.dumps({"bundles": measured, "provenance": provenance()}, indent=None if options.json else 2))
        return
    sources = {str(options.run): partial(net_of_run, options.run, options.data_dir)}
    if options.run is None:
        sources = {name: partial(random_net, name, options.pixels) for name in options.networks.split(",")}
    networks = {name: measure(*source(), options.threads, options.seconds) for name, source in sources.items()}
    if options.json:
        print(json.dumps({"threads": options.threads, "networks": networks, "provenance": provenance()}))
        return
    for name, sizes in networks.items():
        for size, values in sizes.items():
            for variant, ms in values["ms"].items():
                print(
                    f"{name:24} batch {size:3} {variant:16} {ms:9.3f} ms {values['times_faster'][variant]:6.2f} times"
                )


if __name__ == "__main__":
    main()
