"""Accuracy lost and time saved by early exit on a trained network, compared with plain and smaller networks.

    python benchmarks/adaptive.py RUN [--small RUN2 ...] [--runtimes torch,onnx] [--seconds 60] [--json]

RUN was trained and calibrated (`offramp calibrate RUN --max-drop 0.5%`). Each `--small` is another run on the same
data, such as a smaller network trained by `vanilla`; only its final exit is measured. All networks and runtimes are
measured in turn, round by round in one process, on test images in random order. Accuracy is measured on the whole test
split in the same runtime.

Targets: at most 0.5 points of accuracy lost against the plain network (same weights, final exit only), at least 1.5
times its throughput at batch 64 and 1.5 times lower mean latency at batch 1; a speed-up of at least 0.95 of the one
predicted from the measured costs of the segments; with every early exit disabled, at most 1.02 times the time of the
plain network if that takes 5 ms or more.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.config import flat
from offramp.data.splits import DataSet
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.measure.interleaved_benchmark import run_interleaved
from offramp.measure.provenance import provenance
from offramp.measure.runner import Runner
from offramp.runs import LoadedRun, load_data, load_run
from offramp.runs.backends import of_run
from offramp.runs.bench_text import MS, OFF, RATIO
from offramp.train.run_dir import POLICY

POINTS, FASTER = 0.5, 1.5
CHUNK = 256


def accuracies(runner: Runner, policy: ExitPolicy, data: DataSet) -> dict[str, Any]:
    """Share of the whole test split that each variant classifies correctly, and shares that exit at each exit."""
    split = data.splits["test"]
    alone = {"plain": runner.plain, **{f"small {name}": network for name, network in runner.rivals.items()}}
    right = dict.fromkeys(["adaptive", *alone], 0)
    exits: list[int] = []
    for begin in range(0, len(split), CHUNK):
        ids = split.indices[begin : begin + CHUNK]
        labels = split.source.labels[ids]
        inputs = runner.to_inputs(split.source.batch(ids))
        with runner.scope():
            answered = answer(runner.segments, policy, inputs)
            alone_logits: dict[str, Any] = {name: network(inputs, ())[2] for name, network in alone.items()}
        exits += answered.exit.tolist()
        for name, logits in {"adaptive": answered.logits, **alone_logits}.items():
            right[name] += int((np.asarray(_on_cpu(logits)).argmax(1) == labels).sum())
    shares = [exits.count(exit) / len(exits) for exit in range(policy.exits)]
    return {**{name: count / len(split) for name, count in right.items()}, "shares": shares, "samples": len(split)}


def _on_cpu(logits: Any) -> Any:
    return logits.float().cpu() if isinstance(logits, torch.Tensor) else logits


def verdict(accuracy: dict[str, Any], times: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Results of one runtime compared with the targets; a target that does not apply is None."""
    lost = 100 * (accuracy["plain"] - accuracy["adaptive"])
    faster = {batch: report["speedup"] for batch, report in times.items()}
    predicted = min(report["of_predicted"] for report in times.values())
    slow = [report["off_of_plain"] for report in times.values() if report["plain"]["p50"] >= MS]
    return {
        "points_lost": lost,
        "throughput_at_64": faster[64],
        "latency_at_1": faster[1],
        "of_predicted": predicted,
        "off_of_plain": max(slow, default=None),
        "beside_small": {
            name: {
                "points_above": 100 * (accuracy["adaptive"] - accuracy[f"small {name}"]),
                "throughput_at_64": _ratio(times[64], name),
                "latency_at_1": _ratio(times[1], name),
            }
            for name in times[1]["rivals"]
        },
        "met": lost <= POINTS and min(faster[64], faster[1]) >= FASTER,
        "predicted_met": predicted >= RATIO,
        "off_met": max(slow) <= OFF if slow else None,
    }


def _ratio(report: dict[str, Any], rival: str) -> float:
    """Speed relative to a small network."""
    return float(report["rivals"][rival]["mean"] / report["adaptive"]["mean"])


def opened(folder: Path, weights: str) -> LoadedRun:
    """A run to compare with."""
    return load_run(folder, weights, with_policy=False)


def networks(options: argparse.Namespace) -> tuple[LoadedRun, dict[str, LoadedRun]]:
    """The calibrated run, and the plain networks to compare it with."""
    loaded = load_run(options.run, options.weights)
    if loaded.policy is None:
        raise ValueError(
            f"{options.run} has no policy yet: fit one with `offramp calibrate {options.run} --max-drop 0.5%`"
        )
    rivals = {str(folder): opened(folder, options.weights) for folder in options.small}
    for name, rival in rivals.items():
        if (rival.config.data, rival.about["shape"]) != (loaded.config.data, loaded.about["shape"]):
            raise ValueError(f"{name} was trained on other data than {options.run}: they cannot be compared")
    return loaded, rivals


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All results, as plain values."""
    loaded, rivals = networks(options)
    data = load_data(loaded, options.data_dir)
    if options.threads:
        torch.set_num_threads(options.threads)
    runtimes = options.runtimes and options.runtimes.split(",")
    sides = of_run(loaded, runtimes, torch.get_num_threads(), lambda: data, 64, rivals=rivals)
    accuracy = {}
    for runner in sides.runners:
        say(f"{runner.name}: accuracy on test")
        accuracy[runner.name] = accuracies(runner, loaded.policy, data)
    batches = {}
    for batch in (1, 64):
        say(f"batch {batch}: {options.seconds:g} s")
        batches[batch] = run_interleaved(
            sides.runners, loaded.policy, sides.pixels, batch, options.seconds, options.seed
        )
    verdicts = {
        name: verdict(accuracy[name], {batch: each["runtimes"][name] for batch, each in batches.items()})
        for name in accuracy
    }
    fitted = json.loads((Path(options.run) / POLICY).read_text())
    return {
        "benchmark": "adaptive",
        "run": str(options.run),
        "weights": options.weights,
        "config": flat(loaded.config),
        "policy": {key: value for key, value in fitted.items() if key != "provenance"},
        "goal": fitted["provenance"].get("goal"),
        "small": {name: flat(rival.config) for name, rival in rivals.items()},
        "left_out": sides.left_out,
        "accuracy": accuracy,
        "batches": list(batches.values()),
        "verdicts": verdicts,
        "target_met": any(each["met"] for each in verdicts.values()),
        "seconds": options.seconds,
        "seed": options.seed,
        "threads": sides.threads,
        **provenance(),
    }


def show(result: dict[str, Any]) -> None:
    """A table for each runtime, at most 80 columns wide."""
    for name, accuracy in result["accuracy"].items():
        one, many = (each["runtimes"][name] for each in result["batches"])
        print(f"\n{name:28} {'accuracy %':>10} {'ms at 1':>9} {'p99':>8} {'images/s at 64':>15}")
        rows = {"plain": "plain", "adaptive": "adaptive", "off": "exits off", "all": "all exits"}
        lines = [(label, accuracy.get(key), one[key], many[key]) for key, label in rows.items()]
        for small, times in one["rivals"].items():
            lines.append((f"small {Path(small).name}", accuracy[f"small {small}"], times, many["rivals"][small]))
        for label, right, single, batch in lines:
            share = "" if right is None else f"{100 * right:.2f}"
            times = f"{single['mean']:9.3f} {single['p99']:8.3f} {batch['images_per_second']:15,.1f}"
            print(f"  {label[:26]:26} {share:>10} {times}")
        one = result["verdicts"][name]
        print(
            f"  lost {one['points_lost']:.2f} points (target {POINTS}); {one['throughput_at_64']:.2f}x throughput at "
            f"64,\n  {one['latency_at_1']:.2f}x at 1 (target {FASTER}): {'met' if one['met'] else 'MISSED'}"
        )
        for small, ratio in one["beside_small"].items():
            print(
                f"  beside {Path(small).name}: {ratio['points_above']:+.2f} points, {ratio['throughput_at_64']:.2f}x "
                f"its throughput at 64, {ratio['latency_at_1']:.2f}x at 1"
            )
        off = one["off_of_plain"]
        off_text = "plain takes less than 5 ms" if off is None else f"{off:.3f}x plain (target {OFF})"
        print(f"  measured / predicted {one['of_predicted']:.2f} (target {RATIO}); exits off: {off_text}")
        print(f"  leaving: {' '.join(f'{100 * share:.1f}%' for share in accuracy['shares'])}")
    for name, reason in result["left_out"].items():
        print(f"left out: {name} ({reason})")
    print("target met" if result["target_met"] else "TARGET MISSED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--small", type=Path, nargs="+", default=[], metavar="RUN2")
    parser.add_argument("--runtimes", help="comma-separated: torch, torch-bf16, onnx, openvino")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="seconds per batch size, without the time to measure accuracy"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", choices=["last", "best"], default="last")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the images")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args()
    try:
        result = measure(options, lambda text: print(text, file=sys.stderr, flush=True))
    except ValueError as error:
        sys.exit(f"adaptive.py: {error}")
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
