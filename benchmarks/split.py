"""Cost of cutting a model into stages: time of its forward pass compared with the original's, time to cut it, memory.

    python benchmarks/split.py [--models timm:resnet50 ...] [--batches 1 64] [--seconds 5] [--out results/split.jsonl]

Every model is measured at its real size, in float32, in several processes, because the placement of its memory changes
the ratio by some percent from one process to the next. The original network and the one that was cut (`split`), which
share their weights, are measured in turn (a round is original, split, split, original), so that other work on the
machine slows both. The result is the median of the rounds' ratios with its 95 % confidence interval (if there are few
rounds: from the lowest to the highest ratio). Freed memory is kept, as offramp's own programs keep it: otherwise the C
library returns memory to the system and requests it again at random moments, which costs up to a tenth of the time.

The split network runs as a plain network: all its stages and the final exit. The time to split is that of the first
split in a new process; within it, the check that the stages compute the same as the model is also measured alone, in
CPU seconds of one thread. Extra memory is the size of the split network's tensors that the original does not have;
growth is the increase of the process's peak memory by splitting.

Targets: at most 1.02 times the original's time, at most 5 seconds to split and 2 CPU seconds for the check, no second
copy of the weights.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.allocator import keep_freed_memory
from offramp.measure.memory import peak_mib
from offramp.measure.provenance import provenance
from offramp.net import Backbone, plain
from offramp.optional import vision
from offramp.split import cut_points, equivalence, exit_placement, split
from offramp.split.logits import logits_of

TIMES_ORIGINAL, SECONDS, COMPARISON, EXTRA = 1.02, 5.0, 2.0, 0.01
"""Targets; extra memory as a share of the weights (tables that the original computes again in each pass may stay)."""
EXITS, ROUNDS, SHAPE = 4, (2, 150), (3, 224, 224)
MODELS = [
    *(
        f"timm:{name}"
        for name in (
            "resnet50", "convnext_tiny", "efficientnet_b0", "mobilenetv3_small_100", "regnety_008", "densenet121",
            "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "resnext50_32x4d",
        )
    ),
    *(f"torchvision:{name}" for name in ("resnet18", "vgg16_bn", "mobilenet_v2")),
    "transformers:resnet",
]  # fmt: skip


def make(name: str) -> nn.Module:
    """The model, newly initialised."""
    library, _, net = name.partition(":")
    if library == "timm":
        return vision("timm").create_model(net)
    if library == "torchvision":
        return vision("torchvision.models").get_model(net)
    transformers = vision("transformers")
    return transformers.AutoModelForImageClassification.from_config(transformers.AutoConfig.for_model(net))


def storages(modules: Iterable[nn.Module]) -> dict[int, int]:
    """{address: bytes} of the memory behind all parameters and buffers."""
    tensors = [tensor for module in modules for group in (module.parameters(), module.buffers()) for tensor in group]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def ratios(runs: list[Callable[[], object]], seconds: float) -> tuple[list[float], list[float]]:
    """Each round's ratio of the second function's time to the first's, and the first's seconds; for about `seconds`.

    A round is first, second, second, first, because the order may change times by some percent.
    """
    began = time.perf_counter()
    for run in runs:
        timed(run)
    taken = 2 * (time.perf_counter() - began)  # the first passes are slow, so this is a little more than a round
    values: list[float] = []
    first: list[float] = []
    least, most = ROUNDS
    began = time.perf_counter()
    while len(values) < least or (len(values) < most and time.perf_counter() - began + taken < seconds):
        times = [timed(runs[which]) for which in (0, 1, 1, 0)]
        taken = sum(times)
        values.append((times[1] + times[2]) / (times[0] + times[3]))
        first += [times[0], times[3]]
    return values, first


def timed(run: Callable[[], object]) -> float:
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interval(values: list[float]) -> list[float]:
    """The 95 % confidence interval of the median, between two of the values, for any distribution."""
    ordered, reach = sorted(values), 0.98 * math.sqrt(len(values))
    low = max(0, math.floor(len(values) / 2 - reach))
    return [ordered[low], ordered[-1 - low]]


def measure(name: str, batches: list[int], seconds: float, device: str) -> dict[str, Any]:
    """All results of one model."""
    torch.manual_seed(0)
    model = make(name).eval()
    before, peak = storages([model]), peak_mib()
    began = time.perf_counter()
    backbone = split(model, EXITS, SHAPE)
    taken = time.perf_counter() - began
    growth = peak_mib() - peak
    net = plain(backbone).eval()
    compared = comparison(model, backbone)
    extra = sum(size for address, size in storages([net]).items() if address not in before)
    net, model = net.to(device), model.to(device)
    passes = {str(batch): passing(model, net, batch, seconds, device) for batch in batches}
    weights = sum(before.values())
    mib = {"weights_mib": weights / 2**20, "extra_mib": extra / 2**20, "growth_mib": growth}
    return {"seconds_to_split": taken, "cpu_seconds_to_compare": compared, **mib, "batches": passes}


def comparison(model: nn.Module, backbone: Backbone) -> float:
    """CPU seconds that `split` takes to compare a model with its cut form, with one thread."""
    points = cut_points.find(model, SHAPE)
    after, macs = exit_placement.equal(points, EXITS), sum(points.traced.macs.values())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    equivalence.check(model, backbone, after, macs=macs)
    taken = time.process_time() - began
    torch.set_num_threads(threads)
    return taken


def passing(model: nn.Module, net: nn.Module, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """Forward passes of the original and the split network at one batch size."""
    inputs = torch.randn(batch, *SHAPE, device=device)
    with torch.inference_mode():
        expected = logits_of(model(inputs))
        assert (net(inputs).logits[-1] - expected).abs().max() <= 1e-5 * expected.abs().max()
        values, first = ratios([partial(model, inputs), partial(net, inputs)], seconds)
    return {"ratios": values, "original": first}


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of one model, combined from all its processes."""
    batches = {}
    for batch in runs[0]["batches"]:
        values, first = (
            [value for run in runs for value in run["batches"][batch][key]] for key in ("ratios", "original")
        )
        batches[batch] = {
            "ratio": statistics.median(values),
            "interval": interval(values),
            "rounds": len(values),
            "of_processes": [statistics.median(run["batches"][batch]["ratios"]) for run in runs],
            "original_ms": 1000 * statistics.median(first),
        }
    worst = {key: max(run[key] for run in runs) for key in runs[0] if key != "batches"}
    met = worst["cpu_seconds_to_compare"] <= COMPARISON
    met &= worst["seconds_to_split"] <= SECONDS and worst["extra_mib"] <= EXTRA * worst["weights_mib"]
    met &= all(each["ratio"] <= TIMES_ORIGINAL for each in batches.values())
    return {**worst, "batches": batches, "target_met": met}


def alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in new processes."""
    words = ["--one", name, "--seconds", str(options.seconds), "--threads", str(options.threads)]
    words += ["--device", options.device, "--batches", *map(str, options.batches)]
    runs = []
    for _ in range(options.processes):
        ran = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(ran.stdout.splitlines()[-1]))
    return together(runs)


def line(name: str, record: dict[str, Any]) -> str:
    times = "  ".join(
        f"batch {batch}: {each['ratio']:.3f}x [{each['interval'][0]:.3f}, {each['interval'][1]:.3f}] of "
        f"{each['original_ms']:.1f} ms"
        for batch, each in record["batches"].items()
    )
    memory = f"{record['extra_mib']:.2f} of {record['weights_mib']:.0f} MiB extra"
    seconds = f"{record['seconds_to_split']:.1f} s (comparison {record['cpu_seconds_to_compare']:.1f} CPU-s)"
    return f"{name:36} split in {seconds}, {memory}  {times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="LIBRARY:NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="seconds per process and batch size, after the first pass"
    )
    parser.add_argument("--processes", type=int, default=3, help="processes per model, one after the other")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="write one JSON line instead of the table")
    parser.add_argument("--out", type=Path, help="also append the JSON line to this file")
    parser.add_argument("--one", metavar="LIBRARY:NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.one:
        print(json.dumps(measure(options.one, options.batches, options.seconds, options.device)))
        return
    began = time.perf_counter()
    records: dict[str, Any] = {}
    for name in options.models:
        records[name] = alone(name, options)
        print(line(name, records[name]), file=sys.stderr if options.json else sys.stdout, flush=True)
    met, seconds = all(each["target_met"] for each in records.values()), time.perf_counter() - began
    record = {"benchmark": "split", "models": records, "target_met": met, "seconds": seconds, "device": options.device}
    written = json.dumps({**record, **provenance()})
    if options.json:
        print(written)
    else:
        verdict = "targets met" if met else "TARGETS MISSED"
        limits = f"at most {TIMES_ORIGINAL:g}x, {SECONDS:g} s, {COMPARISON:g} CPU-s and no copy of weights"
        print(f"{limits}: {verdict}; took {seconds:.0f} s")
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(written + "\n")


if __name__ == "__main__":
    main()
