"""The score `learned`: its time per decision, and the accuracy that it gains on test at equal cost.

    python benchmarks/learned_score.py [RUN...] [--json] [--rounds 200]

Time: one decision (`ExitPolicy.step`) for one sample, with 10, 100 and 1,000 classes, in numpy and in torch on a CPU,
compared with the score `confidence`; the shortest time of all rounds, on one thread. Target: at most 0.02 ms.

Accuracy, for every run: predictors are fitted on val; for 10 budgets of operations, policies with both scores are
fitted on cal. Reported on test: the difference in accuracy at equal mean operations (its mean over the costs between
the cheapest and the most expensive policy), with its 95 % interval over 1,000 bootstrap samples of the images; and, for
each exit, the area under the ROC curve of both scores as predictors of whether it is right to exit.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.early_exit.calibrate import TooCheap, calibrate, choices
from offramp.early_exit.exit_scores import Rule, score_samples
from offramp.early_exit.failure_prediction import of_exits
from offramp.early_exit.fit_learned import fit
from offramp.early_exit.learned_score import FEATURES
from offramp.early_exit.policy import ExitPolicy
from offramp.measure.cost import as_run, measure
from offramp.measure.provenance import provenance
from offramp.runs import load_run

BUDGETS, SAMPLES, CALLS, TARGET = 10, 1000, 200, 0.02
CLASSES = (10, 100, 1000)


def least_ms(call: Callable[[], object], rounds: int) -> float:
    """The shortest mean time of a call over rounds of `CALLS`, in milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - began) / CALLS)
    return 1000 * min(times)


def decision(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one decision for one sample, by score, library and classes; the second exit's of three."""
    torch.set_num_threads(1)
    weights = (0.3, 0.2, -0.1, -0.5, 0.6, 0.7, 0.1)
    assert len(weights) == len(FEATURES) + 1
    shared: dict[str, Any] = {"thresholds": (0.5,) * 3, "enabled": (True,) * 3}
    policies = {
        "learned": ExitPolicy(**shared, score="learned", predictors=(weights, weights)),
        "confidence": ExitPolicy(**shared),
    }
    rows = []
    for classes in CLASSES:
        logits = np.random.default_rng(0).normal(size=(1, classes)).astype(np.float32)
        for library, array in (("numpy", logits), ("torch", torch.from_numpy(logits))):
            for score, policy in policies.items():
                with torch.inference_mode():
                    carry = policy.step({}, array, 0)[0]
                    ms = least_ms(lambda p=policy, c=carry, a=array: p.step(c, a, 1), rounds)  # type: ignore[misc]
                rows.append({"score": score, "library": library, "classes": classes, "ms": ms})
    return rows


def frontier(run: Path) -> dict[str, Any]:
    """Effect of the learned score on test, for one run."""
    loaded = load_run(run, with_policy=False)
    traces = {name: loaded.trace(name) for name in ("val", "cal", "test")}
    pieces = measure(loaded.inference_net, tuple(loaded.about["shape"]))
    costs = {enabled: as_run(pieces, enabled) for enabled in choices(loaded.net.exits)}
    rules = {"confidence": Rule(), "learned": Rule("learned")}
    rules["learned"] = Rule("learned", predictors=fit(traces["val"].logits, traces["val"].labels, rules["learned"]))
    test = traces["test"].logits, traces["test"].labels
    sides = {name: _samples(traces["cal"], test, costs, rule) for name, rule in rules.items()}
    generator = np.random.default_rng(0)
    n = len(test[1])
    rows = [np.arange(n), *(generator.integers(0, n, n) for _ in range(SAMPLES))]
    gains = np.array([_gain(sides, chosen) for chosen in rows])
    return {
        "run": str(run),
        "points": 100 * float(gains[0]),
        "interval95": (100 * np.quantile(gains[1:], (0.025, 0.975))).tolist(),
        "auroc": {name: of_exits(*test, rule) for name, rule in rules.items()},
    }


def _samples(cal: Any, test: Any, costs: Any, rule: Rule) -> list[tuple[Any, Any]]:
    """Whether every image of test is classified correctly, and its cost, under the policy of each budget."""
    plain = float(costs[choices(len(cal.logits))[-1]][0])
    cheapest = min(float(each[0]) for each in costs.values())
    results = []
    for budget in np.geomspace(cheapest * 1.02, plain, BUDGETS).tolist():
        try:
            policy = calibrate(cal.logits, cal.labels, segment_costs=costs, budget=budget, rule=rule).policy
        except TooCheap:
            continue
        scored = score_samples(*test, policy.enabled, rule)
        on = np.flatnonzero(policy.enabled)
        passes = scored.score >= np.array(policy.thresholds, np.float32)[on][:, None]
        passes[-1] = True
        taken = passes.argmax(0)
        right = scored.right[taken, np.arange(len(taken))]
        results.append((right, np.cumsum(costs[policy.enabled])[taken]))
    return results


def _gain(sides: dict[str, list[tuple[Any, Any]]], rows: Any) -> float:
    """Accuracy of `learned` minus that of `confidence`, mean over equal mean costs."""
    curves = {}
    for name, policies in sides.items():
        points = sorted((float(cost[rows].mean()), float(right[rows].mean())) for right, cost in policies)
        curves[name] = tuple(zip(*points, strict=True))
    low = max(curve[0][0] for curve in curves.values())
    high = min(curve[0][-1] for curve in curves.values())
    costs = np.linspace(low, high, 50)
    return float(np.mean(np.interp(costs, *curves["learned"]) - np.interp(costs, *curves["confidence"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    times = decision(options.rounds)
    runs = [frontier(run) for run in options.runs]
    if options.json:
        print(json.dumps({"decision": times, "target_ms": TARGET, "frontier": runs, "provenance": provenance()}))
        return
    for row in times:
        print(f"{row['library']}, {row['classes']:5} classes, {row['score']:10}: {row['ms']:.4f} ms")
    for run in runs:
        low, high = run["interval95"]
        print(f"{run['run']}: {run['points']:+.2f} points at equal operations [{low:+.2f}, {high:+.2f}]")
        for name, areas in run["auroc"].items():
            print(f"  AUROC {name}: {', '.join('–' if area is None else f'{area:.4f}' for area in areas)}")


if __name__ == "__main__":
    main()
