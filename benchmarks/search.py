"""Time and memory of the search for thresholds: 50,000 samples, 8 exits, 100 classes.

    python benchmarks/search.py [--json] [--samples 50000] [--exits 8] [--classes 100] [--rounds 5] [--out FILE]

Logits are random, such that later exits are more often right and more confident; they are mapped from a file, as
`offramp calibrate` maps a stored trace. Thresholds for every goal are searched in turn, round by round, in a process
that does not import torch. Reported are medians, and the peak memory of the process, including the mapped file.
Targets: at most 2 s and 2 GiB for each goal.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from offramp.early_exit.calibrate import Outcome, calibrate, choices
from offramp.early_exit.exit_scores import Rule
from offramp.measure.memory import peak_mib

SECONDS, GIB = 2.0, 2.0
GOALS: Mapping[str, dict[str, float]] = {
    "half of plain's cost": {"budget": 0.5},
    "a quarter of plain's cost": {"budget": 0.25},
    "plain's accuracy": {"accuracy": 1.0},
    "1 point below plain": {"accuracy": -0.01},
}
"""Budgets as shares of the plain network's cost, accuracies relative to that of the plain network (1.0: equal)."""


def draw(path: Path, samples: int, exits: int, classes: int) -> np.ndarray:
    """Write logits (E, N, C) in float32 to a .npy file; returns the labels (N,)."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, samples)
    hard = random.normal(size=samples)
    logits = open_memmap(path, "w+", np.float32, (exits, samples, classes))
    common = random.normal(size=(samples, classes)).astype(np.float32)
    for exit in range(exits):
        scores = common + random.normal(scale=0.7, size=(samples, classes)).astype(np.float32)
        scores[np.arange(samples), labels] += 2.2 + 2.0 * exit / exits - 1.2 * hard
        logits[exit] = scores * (1 + exit / exits)
    return labels


def goal(request: Mapping[str, float], plain: float, cost: float) -> dict[str, float]:
    if "budget" in request:
        return {"budget": request["budget"] * cost}
    return {"accuracy": plain if request["accuracy"] == 1 else plain + request["accuracy"]}


def costs_of(exits: int) -> dict[tuple[bool, ...], list[int]]:
    """Costs of equal stages, and of a branch that costs a tenth of a stage at every enabled exit."""
    return {on: (10 * np.diff(np.flatnonzero(on), prepend=-1) + 1).tolist() for on in choices(exits)}


def one(folder: Path, rounds: int, score: str) -> dict[str, Any]:
    """Seconds of every goal in every round, their results, and the peak memory of the process."""
    logits, labels = np.load(folder / "logits.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    costs = costs_of(len(logits))
    plain = float((logits[-1].argmax(1) == labels).mean())
    alone = float(sum(costs[choices(len(logits))[-1]]))
    seconds: dict[str, list[float]] = {name: [] for name in GOALS}
    outcomes: dict[str, Outcome] = {}
    for _ in range(rounds):
        for name, request in GOALS.items():
            began = time.perf_counter()
            outcomes[name] = calibrate(
                logits, labels, segment_costs=costs, rule=Rule(score=score), **goal(request, plain, alone)
            )
            seconds[name].append(time.perf_counter() - began)
    return {
        "seconds": seconds,
        "plain": plain,
        "found": {
            name: {"accuracy": outcome.accuracy, "cost": outcome.cost / alone} for name, outcome in outcomes.items()
        },
        "peak_gib": peak_mib() / 2**10,
        "torch_imported": "torch" in sys.modules,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        labels = draw(Path(place) / "logits.npy", options.samples, options.exits, options.classes)
        np.save(Path(place) / "labels.npy", labels)
        again = [sys.executable, __file__, "--one", place, "--rounds", str(options.rounds), "--score", options.score]
        ran = subprocess.run(again, stdout=subprocess.PIPE, check=True, text=True)
    results = json.loads(ran.stdout)
    from offramp.measure.provenance import provenance  # imports torch, which the process that searches is to be without

    seconds = {name: statistics.median(times) for name, times in results.pop("seconds").items()}
    met = max(seconds.values()) <= SECONDS and results["peak_gib"] <= GIB
    request = {key: getattr(options, key) for key in ("samples", "exits", "classes", "rounds", "score")}
    return {"benchmark": "search", **request, "seconds": seconds, **results, "target_met": met, **provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("samples", 50_000), ("exits", 8), ("classes", 100), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--score", default="confidence")
    parser.add_argument("--json", action="store_true", help="write one JSON line instead of the table")
    parser.add_argument("--out", type=Path, help="also append the JSON line to this file")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.rounds, options.score)))
        return
    result = measure(options)
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.samples:,} samples, {options.exits} exits, {options.classes} classes, score {options.score}")
    for name, seconds in result["seconds"].items():
        outcome = result["found"][name]
        print(
            f"{name:28} {seconds:6.2f} s   {100 * outcome['accuracy']:.2f} % at {outcome['cost']:.2f} of plain's cost"
        )
    print(f"peak memory {result['peak_gib']:.2f} GiB; plain {100 * result['plain']:.2f} %")
    print(f"at most {SECONDS:g} s and {GIB:g} GiB: {'met' if result['target_met'] else 'TARGETS MISSED'}")


if __name__ == "__main__":
    main()
