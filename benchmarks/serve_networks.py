"""The networks that `benchmarks/serve.py` serves, as bundles, and the requests that it sends them.

lite0   EfficientNet-Lite0 (timm's `tf_efficientnet_lite0`) with five exits at 96 pixels, on enlarged and coloured
        digits: about 4 ms on one core of a server, and images and states of realistic size
tiny    convolutions of width 64 on digits of 8 by 8 pixels, with four exits: 0.4 ms, so that the server's own time
        dominates

Their weights are random, because only time is measured. Their thresholds give fixed shares of samples at each exit.
"""

import argparse
import base64
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

SHARES = {"lite0": (0.35, 0.25, 0.15, 0.1, 0.15), "tiny": (0.5, 0.25, 0.15, 0.1)}
"""Shares of the images of test that leave at each exit."""
BRANCHES = ("blocks.2.1", "blocks.3.2", "blocks.4.2", "blocks.5.1")
"""Layers of EfficientNet-Lite0 before its first exits, as in the recipe `finetune-cifar100-coarse`."""
IMAGES = 300
MOST = 32
"""Largest batch, in images."""
SIZES = (1, 4)
"""Images of a request with image files."""
REQUESTS = {**{f"bodies-{size}": size for size in SIZES}, "tensors": 1}
"""Files of requests, and the images of each: as files in JSON, or as a binary tensor of pixels."""


def write(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write both bundles and the requests; returns the costs and the speed-up predicted from them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from offramp.bundle.read import open_bundle

    folder.mkdir(exist_ok=True)
    early, plain = folder / "early", folder / "plain"
    if options.run:
        name, pixels = options.run, _trained(options.run, early, plain)
    elif options.network == "lite0":
        name, pixels = "lite0: EfficientNet-Lite0 at 96 pixels, random weights", lite0(early, plain)
    else:
        name, pixels = f"tiny: random weights, width {options.width}", tiny(early, plain, options.width)
    _requests(folder, pixels, options.files)
    (folder / "tensors.header").write_text(_tensors(folder, pixels))
    promise = _promise(open_bundle(early), open_bundle(plain), pixels)
    return {"network": name, **promise, "decode_ms": _decode_ms(open_bundle(plain), folder)}


def tiny(early: Path, plain: Path, width: int) -> Any:
    """A network of four exits on digits; returns the pixels to send (N, 1, 8, 8)."""
    import torch
    from torch import nn

    from offramp.data.load import load
    from offramp.net import Branch, Head, MultiExitNet

    torch.manual_seed(0)

    def stage(first: bool) -> nn.Sequential:
        entry = nn.Conv2d(1 if first else width, width, 3, padding=1)
        return nn.Sequential(entry, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())

    exits = len(SHARES["tiny"])
    stages = [stage(number == 0) for number in range(exits)]
    net = MultiExitNet(stages, [Branch(nn.Identity(), Head(width, 10)) for _ in range(exits)])
    return _bundles(early, plain, net, load("digits"), SHARES["tiny"])


def lite0(early: Path, plain: Path) -> Any:
    """EfficientNet-Lite0 with five exits; returns the pixels to send (N, 3, 96, 96)."""
    import torch
    from torch import nn

    from offramp.data.load import load
    from offramp.data.splits import ArraySource, Split
    from offramp.net import Branch, Head, MultiExitNet
    from offramp.optional import vision
    from offramp.split import split

    digits = load("digits")
    test = digits.splits["test"]
    rows = test.indices[:IMAGES]
    large = ArraySource("large digits", digits.classes, test.source.labels[rows], _large(test.source.batch(rows)))
    cut = Split(large, rows * 0 + range(len(rows)), "test")
    splits = {"test": cut, "cal": replace(cut, name="cal")}
    data = replace(digits, splits=splits, shape=(3, 96, 96), mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.manual_seed(0)
    model = vision("timm").create_model("tf_efficientnet_lite0", num_classes=10)
    backbone = split(model, BRANCHES, data.shape, check=False)
    state, heads = torch.zeros(1, *data.shape), []
    for stage in backbone.stages[:-1]:
        state = stage(state)
        heads.append(Branch(nn.Identity(), Head(state.shape[1], 10)))
    net = MultiExitNet(backbone.stages, [*heads, Branch(nn.Identity(), backbone.head)])
    _settle(net, data)
    return _bundles(early, plain, net, data, SHARES["lite0"])


def _large(pixels: Any) -> Any:
    """Digits (N, 1, 8, 8) as coloured images (N, 3, 96, 96)."""
    import numpy as np
    from PIL import Image

    large = np.stack(
        [np.asarray(Image.fromarray(each[0]).resize((96, 96), Image.Resampling.BICUBIC)) for each in pixels]
    )
    tints = np.random.default_rng(0).uniform(0.3, 1.0, (len(pixels), 3, 1, 1))
    return (large[:, None] * tints).astype(np.uint8)


def _settle(net: Any, data: Any) -> None:
    """Set the statistics of the batch norms from images, so that a network with random weights distinguishes images."""
    import torch
    from torch import nn

    from offramp.data.augment import normalise

    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the average of all batches
            layer.reset_running_stats()
    test = data.splits["test"]
    with torch.inference_mode():
        net.train()(normalise(torch.from_numpy(test.source.batch(test.indices[:64])), data.mean, data.std))


def _bundles(early: Path, plain: Path, net: Any, data: Any, shares: Sequence[float]) -> Any:
    """Write the network with early exits at these shares of test, and without; returns pixels of test."""
    import torch

    from offramp.bundle.write import write as write_bundle
    from offramp.data.augment import normalise
    from offramp.early_exit.policy import ExitPolicy

    test, exits = data.splits["test"], len(shares)
    pixels = test.source.batch(test.indices)
    with torch.inference_mode():
        logits = net.eval()(normalise(torch.from_numpy(pixels), data.mean, data.std)).logits.numpy()
    policy = ExitPolicy(thresholds=(0.0,) * exits, enabled=(True,) * exits)
    thresholds, remaining = [], logits
    for exit, share in enumerate(shares[:-1]):
        score = policy.step({}, remaining[exit], exit)[2]
        cut = sorted(score)[-max(1, round(share * logits.shape[1]))]
        thresholds.append(float(cut))
        remaining = remaining[:, score < cut]
    write_bundle(early, net, ExitPolicy(thresholds=(*thresholds, 0.0), enabled=(True,) * exits), data, images=100)
    write_bundle(plain, net, _last_only(exits), data, images=100)
    return pixels[:IMAGES]


def _last_only(exits: int) -> Any:
    from offramp.early_exit.policy import ExitPolicy

    return ExitPolicy(thresholds=(0.0,) * exits, enabled=(*(False,) * (exits - 1), True))


def _trained(run: str, early: Path, plain: Path) -> Any:
    """A run's bundle, the plain network of the same run as a bundle, and its test images."""
    import offramp
    from offramp.bundle.write import write as write_bundle
    from offramp.runs import load_data, load_run

    offramp.export(run, early)
    loaded = load_run(run)
    data = load_data(loaded, None)
    write_bundle(plain, loaded.inference_net, _last_only(loaded.inference_net.exits), data, images=100)
    test = data.splits["test"]
    return test.source.batch(test.indices[:IMAGES])


def _requests(folder: Path, pixels: Any, kind: str) -> None:
    """Bodies with one image and with four, as files of this kind."""
    from PIL import Image

    texts = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, kind, quality=90)
        texts.append(base64.b64encode(stream.getvalue()).decode())
    for size in SIZES:
        bodies = []
        for start in range(0, len(texts) - size + 1, size):
            tensor = {"name": "image", "datatype": "BYTES", "shape": [size], "data": texts[start : start + size]}
            bodies.append(json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}))
        (folder / f"bodies-{size}.json").write_text(json.dumps(bodies))


def _tensors(folder: Path, pixels: Any) -> str:
    """Bodies with one image as a binary tensor of pixels, which need no decoding; the header that they need."""
    shape = [1, *pixels.shape[1:]]
    binary = {"binary_data_size": pixels[0].nbytes}
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "parameters": binary}
    text = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]})
    bodies = [text + image.tobytes().decode("latin-1") for image in pixels]
    (folder / "tensors.json").write_text(json.dumps(bodies))
    return f"Inference-Header-Content-Length: {len(text)}"


def _decode_ms(bundle: Any, folder: Path, rounds: int = 5) -> float:
    """CPU time from an encoded image of the requests to the input of the network, which early exit does not save."""
    preprocessing, times = bundle.manifest.preprocessing, []
    bodies = json.loads((folder / "bodies-1.json").read_text())
    files = [base64.b64decode(json.loads(body)["inputs"][0]["data"][0]) for body in bodies]
    for _ in range(rounds):
        began = time.process_time()
        for file in files:
            preprocessing.normalise(preprocessing.read(file)[None])
        times.append(time.process_time() - began)
    return 1000 * min(times) / len(files)


def _promise(early: Any, plain: Any, pixels: Any) -> dict[str, Any]:
    """Speed-up of early exit on these images, predicted from the costs of the segments at their best batch sizes.

    At batch 1, the same network may take a quarter longer in one process than in another.
    """
    from offramp.serve.measure import measure

    def lowest(bundle: Any) -> list[float]:
        return [min(curve(size) / size for size in curve.sizes) for curve in measure(bundle, MOST)]

    exits = early.answer(early.manifest.preprocessing.normalise(pixels)).exit.tolist()
    costs, (full,) = lowest(early), lowest(plain)
    parts = [part.exit for part in early.manifest.parts]
    mean = sum(sum(costs[: parts.index(exit) + 1]) for exit in exits) / len(exits)
    return {
        "exit_shares": [exits.count(exit) / len(exits) for exit in parts],
        "segment_ms": [1000 * cost for cost in costs],
        "plain_ms": 1000 * full,
        "promised_speedup": full / mean,
    }
