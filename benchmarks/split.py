"""What splitting a model costs: its forward pass in stages against the original's, at real size, and the time to split.

    python benchmarks/split.py [--models timm:resnet50 torchvision:vgg16_bn ...] [--batches 1 64] [--json]

Original and split network are measured in turn, round by round in one process, so that a busy machine slows both; the
figure is the median of each round's ratio. The split network runs as a plain one: all its stages and the final exit.
Targets: at most 1.02 times the original's time, and at most 5 seconds to split, for every model.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial
from typing import Any

import torch

from offramp._compat import vision
from offramp.measure.timing import side_by_side
from offramp.net import plain
from offramp.split import split

TIMES_ORIGINAL, SECONDS = 1.02, 5.0
EXITS = 4
MODELS = [
    *(
        f"timm:{name}"
        for name in (
            "resnet50", "convnext_tiny", "efficientnet_b0", "mobilenetv3_small_100", "regnety_008", "densenet121",
            "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "resnext50_32x4d",
        )
    ),
    *(f"torchvision:{name}" for name in ("resnet18", "vgg16_bn", "mobilenet_v2")),
]  # fmt: skip


def make(name: str) -> torch.nn.Module:
    """The model, newly initialised."""
    library, _, net = name.partition(":")
    if library == "timm":
        return vision("timm").create_model(net)
    return vision("torchvision.models").get_model(net)


def measure(name: str, batches: list[int], rounds: int, device: str) -> dict[str, Any]:
    """Seconds to split a model, and the ratio of forward passes by batch size."""
    model = make(name).eval()
    before = sum(p.numel() for p in model.parameters())
    began = time.perf_counter()
    backbone = split(model, EXITS, (3, 224, 224))
    seconds = time.perf_counter() - began
    net = plain(backbone).eval().to(device)
    assert sum(p.numel() for p in net.parameters()) == before and not {*model.parameters()} - {*net.parameters()}
    ratios, milliseconds = {}, {}
    for batch in batches:
        inputs = torch.randn(batch, 3, 224, 224, device=device)
        with torch.inference_mode():
            taken = side_by_side({"original": partial(model, inputs), "split": partial(net, inputs)}, rounds)
        ratios[batch] = statistics.median(b / a for a, b in zip(taken["original"], taken["split"], strict=True))
        milliseconds[batch] = 1000 * statistics.median(taken["original"])
    return {"model": name, "seconds_to_split": seconds, "ratio": ratios, "original_ms": milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="LIBRARY:NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="write one JSON line per model instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    about = {"benchmark": "split", "torch": torch.__version__, "threads": options.threads, "hardware": hardware}
    met = True
    for name in options.models:
        found = measure(name, options.batches, options.rounds, options.device)
        good = max(found["ratio"].values()) <= TIMES_ORIGINAL and found["seconds_to_split"] <= SECONDS
        met &= good
        if options.json:
            print(json.dumps({**about, **found, "target_met": good}), flush=True)
            continue
        times = "  ".join(f"batch {b}: {r:.3f}x of {found['original_ms'][b]:.1f} ms" for b, r in found["ratio"].items())
        print(f"{name:36} split in {found['seconds_to_split']:.1f} s  {times}", flush=True)
    if not options.json:
        verdict = "targets met" if met else "TARGETS MISSED"
        print(f"at most {TIMES_ORIGINAL:g}x and {SECONDS:g} s: {verdict}; {hardware}")


if __name__ == "__main__":
    main()
