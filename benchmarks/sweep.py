"""Time of `offramp compare`, compared with the same runs one after the other, each a process with default options.

    python benchmarks/sweep.py --write results/sweep.jsonl        # about 6 minutes on two cores

Measured `--repeats` times, in turn: `offramp train` and then `offramp evaluate --frontier` for every method and seed,
one process after the other; and one `offramp compare`, which trains, evaluates and compares all of them. The machine
should have no other work.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from offramp.measure.provenance import provenance

OFFRAMP = [sys.executable, "-m", "offramp"]


def seconds(words: list[str]) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    ran = subprocess.run([*OFFRAMP, *words], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(words)}: {ran.stderr}")
    return time.perf_counter() - start


def one_after_the_other(recipe: list[str], methods: list[str], seeds: list[str], out: Path) -> tuple[float, float]:
    """Seconds of all calls of `train`, and of all calls of `evaluate`, each in a process of its own."""
    training = evaluation = 0.0
    for method in methods:
        for seed in seeds:
            folder = str(out / f"{method}-{seed}")
            training += seconds(["train", *recipe, "--method", method, "--seed", seed, "--out", folder])
            evaluation += seconds(["evaluate", folder, "--frontier", "--json"])
    return training, evaluation


def compared(recipe: list[str], methods: list[str], seeds: list[str], out: Path) -> tuple[float, Any]:
    """Seconds of a comparison, and the number of runs at once that it chose, if it measured that."""
    words = [
        "compare",
        *recipe,
        "--methods",
        ",".join(methods),
        "--seeds",
        ",".join(seeds),
        "--out",
        str(out),
        "--json",
    ]
    taken, choice = seconds(words), out / "logs/packing.json"
    return taken, json.loads(choice.read_text()) if choice.is_file() else None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both variants in turn, and their medians."""
    recipe = [
        "--net",
        "resnet18",
        "--width",
        str(options.width),
        "--data",
        options.data,
        "--epochs",
        str(options.epochs),
    ]
    recipe += ["--per-class", str(options.per_class)] if options.per_class else []
    methods, seeds = options.methods.split(","), [str(seed) for seed in range(options.seeds)]
    rows = []
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="sweep-") as name:
            training, evaluation = one_after_the_other(recipe, methods, seeds, Path(name) / "one")
            taken, choice = compared(recipe, methods, seeds, Path(name) / "compare")
            shutil.rmtree(name, ignore_errors=True)
        rows.append({"train_s": training, "evaluate_s": evaluation, "compare_s": taken, "packing": choice})
        print(
            f"{number + 1}: train {training:.1f} s, evaluate {evaluation:.1f} s, compare {taken:.1f} s", file=sys.stderr
        )
    medians = {key: statistics.median(row[key] for row in rows) for key in ("train_s", "evaluate_s", "compare_s")}
    return {
        "recipe": recipe,
        "methods": methods,
        "seeds": [int(seed) for seed in seeds],
        **medians,
        "throughput": (medians["train_s"] + medians["evaluate_s"]) / medians["compare_s"],
        "throughput_against_training_alone": medians["train_s"] / medians["compare_s"],
        "repeats": rows,
        "provenance": provenance("cpu"),
    }


def main() -> None:
    """Measure, print, and add a line to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--per-class", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--methods", default="joint,byot,muse,dbt")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--write", type=Path, default=None, help="file to add the result to, as a line of JSON")
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args()
    result = json.dumps(measure(options))
    print(result)
    if options.write:
        with options.write.open("a", encoding="utf-8") as file:
            file.write(result + "\n")


if __name__ == "__main__":
    main()
