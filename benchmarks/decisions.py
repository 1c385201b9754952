"""Ways to decide when to exit, on trained runs: every score, output of the policy and temperature.

    python benchmarks/decisions.py RUN=BASELINE [RUN=BASELINE...] [--drop 0.5] [--json]

For every way, the policy with the fewest multiply-adds is fitted on cal whose accuracy there is at most `--drop` points
below that of the baseline, a plain network trained alone. Reported are its mean operations on cal and test, relative to
the baseline, and how many points of accuracy it loses on test relative to the baseline's accuracy on test. Ways that
do not reach the accuracy on every run are last. A way is to be chosen by its operations on cal.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from offramp.early_exit import temperature
from offramp.early_exit.calibrate import calibrate, choices, does
from offramp.early_exit.exit_scores import Rule, score_samples
from offramp.early_exit.fit_learned import fit
from offramp.measure.cost import as_run, measure
from offramp.measure.provenance import provenance
from offramp.runs import load_run

SCORES = ("confidence", "margin", "entropy", "patience", "learned")
ANSWERS = ("exit", "arithmetic", "geometric", "sum")
Way = tuple[str, str, str]
"""Score, output, and whether temperatures are `1` or `fit`."""
WAYS = list(product(SCORES, ANSWERS, ("1", "fit")))


def ways(run: Path, baseline: Path, drop: float) -> Iterator[tuple[Way, dict[str, float]]]:
    """What each way reaches on one run."""
    loaded, plain = (load_run(folder, with_policy=False) for folder in (run, baseline))
    traces = {name: loaded.trace(name) for name in ("val", "cal", "test")}
    logits = {name: np.asarray(trace.logits) for name, trace in traces.items()}
    labels = {name: np.asarray(trace.labels) for name, trace in traces.items()}
    alone = {name: _final_accuracy(plain, name) for name in ("cal", "test")}
    shape = tuple(loaded.about["shape"])
    pieces = measure(loaded.inference_net, shape)
    costs = {on: as_run(pieces, on) for on in choices(loaded.net.exits)}
    whole = float(sum(as_run(measure(plain.inference_net, shape), (True,))))
    for way in WAYS:
        rule = _rule(way, logits, labels)
        least = alone["cal"] - drop / 100
        try:
            outcome = calibrate(logits["cal"], labels["cal"], segment_costs=costs, accuracy=least, rule=rule)
        except ValueError as error:
            if "no policy is that accurate" not in str(error):
                raise
            continue
        prices = np.cumsum(np.asarray(costs[outcome.policy.enabled], float))
        scored = score_samples(logits["test"], labels["test"], outcome.policy.enabled, rule)
        reported = does(outcome.policy, scored, prices)
        yield (
            way,
            {
                "cal_share": outcome.cost / whole,
                "test_share": reported.cost / whole,
                "test_drop": 100 * (alone["test"] - reported.accuracy),
            },
        )


def _final_accuracy(plain: Any, split: str) -> float:
    trace = plain.trace(split)
    return float((np.asarray(trace.logits[-1]).argmax(1) == np.asarray(trace.labels)).mean())


def _rule(way: Way, logits: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Rule:
    score, answer, temperatures = way
    fitted = temperature.fit(logits["cal"], labels["cal"]) if temperatures == "fit" else ()
    rule = Rule(score, answer, fitted)
    return rule._replace(predictors=fit(logits["val"], labels["val"], rule)) if score == "learned" else rule


COLUMNS = (("cal_share", 100), ("test_share", 100), ("test_drop", 1))
"""What a row shows of a way's runs, and in which unit: percent, percent, points."""


def order(row: dict[str, Any]) -> tuple[int, float]:
    """Ways that reach the accuracy on most runs first, then those with the fewest operations on cal."""
    return -len(row["runs"]), mean([run["cal_share"] for run in row["runs"]] or [1.0])


def line(row: dict[str, Any]) -> str:
    """A row of the table: means and standard deviations over runs."""
    columns = []
    for key, scale in COLUMNS:
        values = [scale * run[key] for run in row["runs"]]
        spread = f" ± {stdev(values):4.2f}" if len(values) > 1 else ""
        columns.append(f"{mean(values):6.2f}{spread}" if values else "-")
    return f"{row['score']:10} {row['answer']:10} {row['temperatures']:12} {len(row['runs'])}    {'  '.join(columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN=BASELINE")
    parser.add_argument("--drop", type=float, default=0.5, help="points of accuracy below the baseline")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    pairs = [pair.rpartition("=") for pair in options.runs]
    if wrong := [baseline for run, _, baseline in pairs if not run]:
        parser.error(f"{wrong[0]} has no baseline: give RUN=BASELINE")
    results: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    for run, _, baseline in pairs:
        for way, reached in ways(Path(run), Path(baseline), options.drop):
            results[way].append(reached)
    rows = [{"score": way[0], "answer": way[1], "temperatures": way[2], "runs": each} for way, each in results.items()]
    rows.sort(key=order)
    if options.json:
        runs = [run for run, _, _ in pairs]
        print(json.dumps({"benchmark": "decisions", "runs": runs, "drop": options.drop, "ways": rows, **provenance()}))
        return
    print("score      output     temperatures runs operations %: cal, test  points lost on test")
    print("\n".join(map(line, rows)))


if __name__ == "__main__":
    main()
