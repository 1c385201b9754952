"""All measurements on a GPU, in one run of some minutes, without the internet; results are kept whenever it ends.

    python benchmarks/gpu_all.py --minutes 10 [--out gpu_all.json] [--data-dir DIR] [--json]
    python benchmarks/gpu_all.py --device cpu --tiny

Parts, in this order: `environment`; `tests` (those marked `gpu`); `steps` (images/s of ResNet18 with `beed` exits:
kernel by kernel, as one CUDA graph, only the network's forward, backward and optimizer step as a graph, a plain PyTorch
loop, compiled, and compiled as one graph); `cifar` (three epochs of `gpu_cifar.py`); `inference` (early exit compared
with the plain network at batch 1, 64, 256 and 1024; then with exits disabled where it would be slower); `resume` (a
deterministic run that was interrupted, compared with one that was not); `hdkd` (time of its step divided by that of
`joint`). `targets` lists every target of the project beside its figure (`gpu_targets.py`). Without CIFAR-100 in
$OFFRAMP_DATA (or --data-dir), random images replace it: then speeds are meaningful, accuracies are not. Each part must
end by its share of the time (`BY`). The file is written after every figure, and kept when the script is interrupted.
With `--tiny`, everything is small, to test the script itself.
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
import traceback
from collections.abc import Callable, Generator, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any, cast

import torch

sys.path.insert(0, str(Path(__file__).parent))
import gpu_cifar
import gpu_targets
import train_speed
from gpu_plan import Plan, Quiet, TimeEnded, attempt, bare_step, bounded, no_gpu, random_images, rate, tested

from offramp.bundle.gpu_sessions import PROVIDERS
from offramp.config import Config
from offramp.measure.provenance import provenance
from offramp.runs.bench import bench
from offramp.runs.calibrate import calibrate
from offramp.runs.calibration import Calibration
from offramp.runs.evaluate import evaluate
from offramp.runs.goal import Goal
from offramp.runs.train import train

Results = Iterator[dict[str, Any]]
"""What a part has measured so far, one figure after the other."""
HELD_OUT = 0.1
"""Share of the training images that fit the policy of `inference`."""


def environment(plan: Plan) -> Results:
    yield provenance()


def tests(plan: Plan) -> Results:
    """Runs the tests marked `gpu`: number of tests by outcome, and the output if a test failed."""
    if plan.device != "cuda":
        yield {"summary": "not run: there is no GPU"}
        return
    yield tested(["-m", "gpu", "tests/gpu", "tests/train/test_compile.py"], plan)


def steps(plan: Plan) -> Results:
    """Images per second of each form of a training step, and their ratios."""
    width = 4 if plan.tiny else 64
    pixels, labels = random_images(plan)

    notes: list[str] = []

    def offramp(compile: bool, graph: bool) -> Callable[[], Generator[None]]:
        return lambda: train_speed.offramp_loop(width, plan.device, pixels, labels, compile, graph, notes=notes)

    ways: dict[str, Callable[[], Generator[None]]] = {"eager": offramp(False, False), "graph": offramp(False, True)}
    ways["bare graph"] = lambda: bare_step(width, plan.device, pixels)
    ways["plain"] = lambda: train_speed.plain_loop(width, plan.device, pixels, labels, workers=0 if plan.tiny else 8)
    if not plan.tiny:
        ways |= {"compiled": offramp(True, False), "compiled graph": offramp(True, True)}
    speeds: dict[str, Any] = {}
    for name, make in ways.items():
        speeds[name] = attempt(lambda make=make: rate(make(), plan))
        numbers = {name: speed for name, speed in speeds.items() if isinstance(speed, float)}
        others = [name for name in ("plain", "bare graph") if name in numbers]
        ratios = {
            f"{name} / {other}": numbers[name] / numbers[other]
            for name, other in product(numbers, others)
            if name not in ("plain", "bare graph")
        }
        yield {"images_per_second": speeds, "ratios": ratios, "notes": notes}


def cifar(plan: Plan) -> Results:
    """Three epochs of the training of `gpu_cifar.py`, with some images held out for the policy of `inference`."""
    if plan.tiny:
        config = Config(net="resnet18", width=4, method="beed", branch="beed", epochs=1, device="cpu", batch_size=256)
    else:
        config = gpu_cifar.configuration(3, None, graph=plan.device == "cuda", device=plan.device)
    config = dataclasses.replace(config, **plan.data, holdout=HELD_OUT)
    began = time.perf_counter()
    bounded([sys.executable, gpu_cifar.__file__, "--help"], plan.left, stdout=subprocess.DEVNULL)  # imports everything
    trained = train(config, plan.folder / "cifar", reporter=(quiet := Quiet()))
    seconds = time.perf_counter() - began
    records = [json.loads(line) for line in (plan.folder / "cifar/metrics.jsonl").read_text().splitlines()]
    passed = [0.0, *(record["seconds"] for record in records if record["kind"] == "epoch")]
    epochs = [after - before for before, after in pairwise(passed)]
    whole = (epochs[0] + 199 * epochs[-1]) / (1 - HELD_OUT)  # `gpu_cifar.py` trains on all images
    yield {
        "data": config.data,
        "seconds_with_start": seconds,
        "seconds_of_epochs": epochs,
        "200_epochs_estimated_minutes": (seconds - sum(epochs) + whole) / 60,
        "last": dataclasses.asdict(trained.last),
        "notes": quiet.notes,
    }
    yield {"accuracy": evaluate(trained, batch_size=256, reporter=Quiet()).accuracy}


def inference(plan: Plan) -> Results:
    """Early exit compared with the plain network in PyTorch, in float32 and bf16, and in ONNX Runtime with CUDA."""
    from offramp.runs.backends import GRAPHS, absent

    run, device = plan.folder / "cifar", cast(Any, plan.device)
    sizes, seconds = ([1, 4], 0.01) if plan.tiny else ([1, 64, 256, 1024], 4.0)
    some = Goal(macs=0.75)  # so that some images exit early, also random ones

    def fitted(goal: Goal) -> Calibration:
        return calibrate(run, goal, device=device, reporter=Quiet())

    def measured(*runtimes: str) -> dict[str, Any]:
        result = bench(run, batch=sizes, runtimes=runtimes, seconds=seconds, device=device, reporter=Quiet())
        return {"batches": result.batches, "least_of_predicted": result.least_of_predicted}

    def never_slower(runtime: Any) -> dict[str, Any]:
        chosen = fitted(Goal(max_drop=0.05, never_slower_at=tuple(sizes), runtime=runtime))
        records = {record["batch"]: record["runtimes"][runtime] for record in measured(runtime)["batches"]}
        of_plain = {size: 1 / record["speedup"] for size, record in records.items()}
        return {"enabled": chosen.enabled, "expected": chosen.of_plain_ms, "of_plain_ms": of_plain}

    fitted(some)
    on_gpu = plan.device == "cuda"
    groups = [["torch"] if plan.tiny else ["torch", "torch-bf16"], *([list(GRAPHS)] if on_gpu else [])]
    for runtimes in groups:
        yield {runtimes[-1]: attempt(lambda runtimes=runtimes: measured(*runtimes))}
    yield {"never_slower": attempt(lambda: never_slower(groups[-1][-1]))}
    for name in PROVIDERS if on_gpu else ():
        if reason := absent(name):
            yield {name: reason}
        else:
            fitted(some)
            yield {name: attempt(lambda name=name: measured(name))}


class StopOnce(Quiet):
    """Interrupts a run as Ctrl-C does, after its first epoch."""

    stopped = False

    def epoch_done(self, record: dict[str, Any]) -> None:
        if not self.stopped:
            self.stopped = True
            signal.raise_signal(signal.SIGINT)


def resume(plan: Plan) -> Results:
    """Whether a run that was interrupted and resumed ends with the weights of one that was not."""
    from safetensors.torch import load_file

    device: Any = plan.device
    config = Config(width=4 if plan.tiny else 16, method="joint", epochs=2, batch_size=256, device=device)
    config = dataclasses.replace(config, deterministic=True, lr=0.02)
    whole, parts = plan.folder / "whole", plan.folder / "parts"
    train(config, whole, reporter=Quiet())
    try:
        train(config, parts, reporter=(stopping := StopOnce()))
    except KeyboardInterrupt:
        if not stopping.stopped:  # somebody else stops the script
            raise
        train(config, parts, resume=True, reporter=Quiet())
    one, other = (load_file(folder / "last.safetensors") for folder in (whole, parts))
    apart = max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
    yield {"equal": apart == 0.0, "largest_difference": apart}


def hdkd(plan: Plan) -> Results:
    """Time of a step of `hdkd` divided by that of `joint`, both without a CUDA graph."""
    width, speeds = 4 if plan.tiny else 64, dict[str, float]()
    pixels, labels = random_images(plan)
    for method in ("joint", "hdkd"):
        speeds[method] = rate(train_speed.offramp_loop(width, plan.device, pixels, labels, False, False, method), plan)
        yield {"images_per_second": speeds}
    yield {"steps_of_joint": speeds["joint"] / speeds["hdkd"]}


PARTS: dict[str, Callable[[Plan], Results]] = {
    part.__name__: part for part in (environment, tests, steps, cifar, inference, resume, hdkd)
}
BY = {"environment": 0.05, "tests": 0.3, "steps": 0.58, "cifar": 0.68, "inference": 0.88, "resume": 0.94, "hdkd": 1.0}
"""Deadline of each part as a share of the time limit: a slow part does not use up the time of later ones."""


def _end(number: int, frame: Any) -> None:
    raise TimeEnded


def measure(plan: Plan, out: Path, minutes: float) -> dict[str, Any]:
    """All parts, one after the other; one that fails or exceeds its time says so, beside what it had measured."""
    result: dict[str, Any] = {"benchmark": "gpu_all", "device": plan.device, "tiny": plan.tiny, "minutes": minutes}
    started, seconds = time.monotonic(), 60 * minutes
    before = signal.signal(signal.SIGALRM, _end)
    for name, part in PARTS.items():
        began, result[name] = time.monotonic(), {}
        plan.end = started + BY.get(name, 1.0) * seconds
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, max(0.01, plan.left))
                for figures in part(plan):
                    result[name] |= figures
                    write(out, result)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeEnded:
            result[name]["error"] = "the time ended"
        except KeyboardInterrupt:
            result |= {name: {**result[name], "error": "interrupted"}, "interrupted": True}
        except Exception as error:
            text = re.sub(r"\s+", " ", str(error))[:1000]
            result[name] |= {"error": f"{type(error).__name__}: {text}", "traceback": traceback.format_exc()[-4000:]}
        finally:
            result[name]["seconds"] = time.monotonic() - began
            write(out, result)
        if result.get("interrupted"):
            break
    signal.signal(signal.SIGALRM, before)
    return result


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the file anew, with the targets; it is whole at any time."""
    result["targets"] = gpu_targets.all_targets(result)
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(result, indent=1, default=str) + "\n")
    part.replace(out)


def data_of(data_dir: Path | None, tiny: bool) -> dict[str, Any]:
    """The data set: CIFAR-100 if it is available, else random images of its size."""
    if tiny:
        return {"data": "digits"}
    root = data_dir or (Path(os.environ["OFFRAMP_DATA"]) if "OFFRAMP_DATA" in os.environ else None)
    if root and any((folder / "cifar100").is_dir() for folder in (root, root.parent)):
        return {"data": "cifar100", "data_dir": root}
    if data_dir:
        sys.exit(f"--data-dir {data_dir} contains no folder cifar100; without the option, random images replace it")
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
    if not 0 < options.minutes < float("inf"):
        sys.exit(f"--minutes must be positive, got {options.minutes:g}")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"gpu_all needs a CUDA GPU, and {no_gpu()}; --device cpu --tiny tests the script itself")
    data = data_of(options.data_dir, options.tiny)
    try:
        write(options.out, {})
    except OSError as error:
        sys.exit(f"--out {options.out} cannot be written: {error.strerror}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing that was started is left
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(options.device, options.tiny, Path(folder), data, time.monotonic() + 60 * options.minutes)
        result = measure(plan, options.out, options.minutes)
    if options.json:
        print(json.dumps(result, default=str))
    else:
        for name in PARTS:
            print(f"{name}: {json.dumps(result.get(name), default=str)[:300]}")
        print(*gpu_targets.lines(result["targets"]), f"everything: {options.out}", sep="\n")
    if result.get("interrupted"):
        sys.exit(130)


if __name__ == "__main__":
    main()
