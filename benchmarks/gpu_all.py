"""All measurements on a GPU, in one run of some minutes; results are kept if the time ends before the last part.

    python benchmarks/gpu_all.py --minutes 10 [--out gpu_all.json] [--data-dir DIR] [--json]
    python benchmarks/gpu_all.py --device cpu --tiny

Parts, in this order: `environment`; `tests` (those marked `gpu`); `steps` (images/s of ResNet18 with `beed` exits:
kernel by kernel, as one CUDA graph, compiled, both, only the network's forward, backward and optimizer step as a graph,
and a plain PyTorch loop); `cifar` (three epochs of `gpu_cifar.py`); `inference` (early exit compared with the plain
network at batch 1, 64, 256 and 1024); `resume` (a deterministic run that was interrupted, compared with one that was
not); `hdkd` (time of its step divided by that of `joint`). Without CIFAR-100 in --data-dir or $OFFRAMP_DATA, random
images replace it: then speeds are meaningful, accuracies are not. The file is written after every part. With `--tiny`,
everything is small, to test the script itself.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import gpu_cifar
import train_speed
from gpu_plan import Plan, Quiet, TimeEnded, bare_step, random_images, rate

from offramp.config import Config
from offramp.measure.provenance import provenance
from offramp.runs.bench import bench
from offramp.runs.calibrate import calibrate
from offramp.runs.evaluate import evaluate
from offramp.runs.goal import Goal
from offramp.runs.train import train

ROOT = Path(__file__).parents[1]


def environment(plan: Plan) -> dict[str, Any]:
    return provenance()


def tests(plan: Plan) -> dict[str, Any]:
    """The tests marked `gpu`: their summary, and the failed tests."""
    if plan.device != "cuda":
        return {"summary": "not run: there is no GPU"}
    places = ["tests/gpu", "tests/train/test_compile.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *places, "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=max(30.0, 0.4 * plan.left)
    )
    lines = ran.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1] if lines else "", "failed": failed, "output": ran.stdout[-4000:] if failed else ""}


def steps(plan: Plan) -> dict[str, Any]:
    """Images per second of each form of a training step, and their ratios."""
    width = 4 if plan.tiny else 64
    pixels, labels = random_images(plan)

    def offramp(compile: bool, graph: bool) -> Callable[[], Iterator[None]]:
        return lambda: train_speed.offramp_loop(width, plan.device, pixels, labels, compile, graph)

    ways: dict[str, Callable[[], Iterator[None]]] = {"eager": offramp(False, False), "graph": offramp(False, True)}
    if plan.device == "cuda":
        ways["bare graph"] = lambda: bare_step(width, plan.device, pixels)
    ways["plain"] = lambda: train_speed.plain_loop(width, plan.device, pixels, labels, workers=0 if plan.tiny else 8)
    if not plan.tiny:
        ways |= {"compiled": offramp(True, False), "compiled graph": offramp(True, True)}
    speeds: dict[str, Any] = {}
    for name, make in ways.items():
        try:
            speeds[name] = rate(make(), plan)
        except (RuntimeError, ValueError) as error:  # one way may fail, the others count
            speeds[name] = f"{type(error).__name__}: {str(error)[:500]}"
    numbers = {name: speed for name, speed in speeds.items() if isinstance(speed, float)}
    ours = [speed for name, speed in numbers.items() if name not in ("plain", "bare graph")]
    ratios = {f"best / {name}": max(ours) / numbers[name] for name in ("plain", "bare graph") if name in numbers}
    return {"images_per_second": speeds, "ratios": ratios}


def cifar(plan: Plan) -> dict[str, Any]:
    """Three epochs of the training of `gpu_cifar.py`, with some images held out for the policy of `inference`."""
    if plan.tiny:
        config = Config(net="resnet18", width=4, method="beed", branch="beed", epochs=1, device="cpu", batch_size=256)
    else:
        config = gpu_cifar.configuration(3, None, graph=plan.device == "cuda", device=plan.device)
    config = dataclasses.replace(config, **plan.data, holdout=0.1)
    began = time.perf_counter()
    trained = train(config, plan.folder / "cifar", reporter=Quiet())
    seconds = time.perf_counter() - began
    records = [json.loads(line) for line in (plan.folder / "cifar/metrics.jsonl").read_text().splitlines()]
    passed = [0.0, *(record["seconds"] for record in records if record["kind"] == "epoch")]
    epochs = [after - before for before, after in pairwise(passed)]
    tested = evaluate(trained, batch_size=256, reporter=Quiet())
    return {
        "seconds_with_start": seconds,
        "seconds_of_epochs": epochs,
        "200_epochs_estimated_minutes": (seconds - sum(epochs) + epochs[0] + 199 * epochs[-1]) / 60,
        "accuracy": tested.accuracy,
        "last": dataclasses.asdict(trained.last),
    }


def inference(plan: Plan) -> dict[str, Any]:
    """Early exit compared with the plain network in PyTorch, in float32 and bf16, and in ONNX Runtime with CUDA."""
    from offramp.runs.backends import absent

    run = plan.folder / "cifar"
    calibrate(run, Goal(max_drop=0.05), reporter=Quiet())
    runtimes = ["torch", "torch-bf16"]
    more = ("torch-graph", "torch-bf16-graph", "onnx-cuda", "onnx-tensorrt")
    runtimes += [name for name in more if plan.device == "cuda" and not absent(name)]
    sizes, seconds = ([1, 4], 0.01) if plan.tiny else ([1, 64, 256, 1024], 4.0)
    device: Any = plan.device
    runtimes = runtimes[: 1 if plan.tiny else None]
    measured = bench(run, batch=sizes, runtimes=runtimes, seconds=seconds, device=device, reporter=Quiet())
    return {"batches": measured.batches, "least_of_predicted": measured.least_of_predicted}


class StopOnce(Quiet):
    """Interrupts a run as Ctrl-C does, after its first epoch."""

    stopped = False

    def epoch_done(self, record: dict[str, Any]) -> None:
        if not self.stopped:
            self.stopped = True
            signal.raise_signal(signal.SIGINT)


def resume(plan: Plan) -> dict[str, Any]:
    """Whether a run that was interrupted and resumed ends with the weights of one that was not."""
    from safetensors.torch import load_file

    device: Any = plan.device
    config = Config(width=4 if plan.tiny else 16, method="joint", epochs=2, batch_size=256, device=device)
    config = dataclasses.replace(config, deterministic=True, lr=0.02)
    whole, parts = plan.folder / "whole", plan.folder / "parts"
    train(config, whole, reporter=Quiet())
    try:
        train(config, parts, reporter=StopOnce())
    except KeyboardInterrupt:
        train(config, parts, resume=True, reporter=Quiet())
    one, other = (load_file(folder / "last.safetensors") for folder in (whole, parts))
    apart = max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
    return {"equal": apart == 0.0, "largest_difference": apart}


def hdkd(plan: Plan) -> dict[str, Any]:
    """Time of a step of `hdkd` divided by that of `joint`, both without a CUDA graph."""
    width = 4 if plan.tiny else 64
    pixels, labels = random_images(plan)
    speeds = {
        method: rate(train_speed.offramp_loop(width, plan.device, pixels, labels, False, False, method), plan)
        for method in ("joint", "hdkd")
    }
    return {"images_per_second": speeds, "steps_of_joint": speeds["joint"] / speeds["hdkd"]}


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    part.__name__: part for part in (environment, tests, steps, cifar, inference, resume, hdkd)
}


def _end(number: int, frame: Any) -> None:
    raise TimeEnded


def measure(plan: Plan, out: Path, minutes: float) -> dict[str, Any]:
    """All parts, one after the other; a part that fails or exceeds the time has the reason in place of its result."""
    result: dict[str, Any] = {"benchmark": "gpu_all", "device": plan.device, "tiny": plan.tiny, "minutes": minutes}
    before = signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, plan.left))
    try:
        for name, part in PARTS.items():
            began = time.perf_counter()
            try:
                result[name] = part(plan)
            except TimeEnded:
                result |= {other: {"error": "the time ended"} for other in PARTS if other not in result}
                break
            except Exception as error:
                text = re.sub(r"\s+", " ", str(error))[:1000]
                result[name] = {"error": f"{type(error).__name__}: {text}"}
            result[name]["seconds"] = time.perf_counter() - began
            out.write_text(json.dumps(result, indent=1, default=str) + "\n")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    out.write_text(json.dumps(result, indent=1, default=str) + "\n")
    return result


def data_of(data_dir: Path | None, tiny: bool) -> dict[str, Any]:
    """The data set: CIFAR-100 if it is available, else random images of its size."""
    if tiny:
        return {"data": "digits"}
    root = data_dir or (Path(os.environ["OFFRAMP_DATA"]) if "OFFRAMP_DATA" in os.environ else None)
    if root and any((folder / "cifar100").is_dir() for folder in (root, root.parent)):
        return {"data": "cifar100", "data_dir": root}
    return {"data": "python:random_cifar", "data_dir": None}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_all.json"))
    parser.add_argument("--data-dir", type=Path, help="default: $OFFRAMP_DATA")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="width 4 and few steps, to test the script itself")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_all needs a CUDA GPU and PyTorch sees none here; --device cpu --tiny shows that it runs")
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(options.device, options.tiny, Path(folder), data_of(options.data_dir, options.tiny), end)
        result = measure(plan, options.out, options.minutes)
    if options.json:
        print(json.dumps(result, default=str))
        return
    for name in PARTS:
        print(f"{name}: {json.dumps(result[name], default=str)[:300]}")
    print(f"everything: {options.out}")


if __name__ == "__main__":
    main()
