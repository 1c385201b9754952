"""offramp calibrate: fit the policy by which samples leave, on the split held out for nothing else."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from offramp.cli import show
from offramp.cli._goal import goal_of
from offramp.cli._options import DataDir, Json, Weights

GOAL = Group("Goal (exactly one)")


def calibrate(
    run: Path,
    *,
    macs: Annotated[str | None, Parameter(group=GOAL)] = None,
    ms: Annotated[str | None, Parameter(group=GOAL)] = None,
    max_drop: Annotated[str | None, Parameter(group=GOAL)] = None,
    target_accuracy: Annotated[str | None, Parameter(group=GOAL)] = None,
    risk: Annotated[str | None, Parameter(group=GOAL)] = None,
    delta: float | None = None,
    save: Literal["macs", "ms"] | None = None,
    batch_size: int = 64,
    runtime: Literal["torch", "torch-bf16", "onnx", "openvino"] | None = None,
    score: Literal["confidence", "margin", "entropy", "patience"] = "confidence",
    answer: Literal["exit", "arithmetic", "geometric", "sum"] = "exit",
    temperatures: str = "1",
    weights: Weights = "last",
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Fit thresholds for a goal, and choose which exits to evaluate at all, down to the plain network.

    Writes `policy.json` into the run (atomically; the old one is kept as policy.json.old).

    Args:
        run: Folder of a trained run.
        macs: Mean operations per image: a share of the plain network such as 0.5 or 50%, or a count such as 250M.
        ms: Mean milliseconds per image at --batch-size, measured here and now.
        max_drop: Accuracy that may be lost against the plain network, at the least cost: 0.5% is half a point.
        target_accuracy: Accuracy to reach at the least cost, such as 75% or 0.75.
        risk: Bound on the expected accuracy lost against the plain network, such as 1% or 0.01.
        delta: With --risk: the bound holds with probability 1 - delta over the calibration images.
        save: What to save where the goal is no cost: macs (the default) or ms.
        batch_size: Batch size at which milliseconds are measured.
        runtime: What milliseconds are measured in: where the network is to answer. torch in the run's own precision
            by default.
        score: How certain an exit is.
        answer: What a sample takes along: the exit's own answer, or an ensemble's of the enabled exits passed.
        temperatures: `fit` by the likelihood of cal, a number, or one per exit, comma-separated.
    """
    from offramp.cli._console import ConsoleReporter
    from offramp.runs.calibrate import calibrate as calibrate_run

    goal = goal_of(
        macs=macs,
        ms=ms,
        max_drop=max_drop,
        target_accuracy=target_accuracy,
        risk=risk,
        delta=delta,
        save=save,
        batch_size=batch_size,
        runtime=runtime,
        temperatures=temperatures,
    )
    reporter = ConsoleReporter(not json)
    result = calibrate_run(run, goal, score=score, answer=answer, weights=weights, data_dir=data_dir, reporter=reporter)
    show(result, json)
