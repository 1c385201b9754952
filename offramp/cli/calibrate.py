"""offramp calibrate: fit the policy that decides when samples exit, on the split held out for it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from offramp.cli import show
from offramp.cli._goal import goal_of
from offramp.cli._options import BaselinePath, DataDir, Device, Json, Sizes, Weights
from offramp.runs.goal import AnswerRule, Runtime, Score, Unit

GOAL = Group("Goal (exactly one)")


def calibrate(
    run: Path,
    *,
    macs: Annotated[str | None, Parameter(group=GOAL)] = None,
    ms: Annotated[str | None, Parameter(group=GOAL)] = None,
    max_drop: Annotated[str | None, Parameter(group=GOAL)] = None,
    target_accuracy: Annotated[str | None, Parameter(group=GOAL)] = None,
    risk: Annotated[str | None, Parameter(group=GOAL)] = None,
    delta: str | None = None,
    save: Unit | None = None,
    batch_size: int = 64,
    runtime: Runtime | None = None,
    never_slower_at: Sizes = (),
    score: Score = "confidence",
    answer: AnswerRule = "exit",
    temperatures: str = "1",
    baseline: BaselinePath = None,
    weights: Weights = "last",
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Fit thresholds and choose which exits to use, for one goal.

    Shares are plain numbers or percent: 0.6 is 60%. --max-drop is in percentage points: 0.5 and 0.5% are half a point;
    plain numbers below 0.1, which may be meant as shares, are refused.

    Writes `policy.json` into the run; the previous one is kept as policy.json.old. If no early exit saves anything, all
    are disabled and the plain network remains.

    Args:
        run: Folder of a trained run.
        macs: Budget: mean multiply-adds per image, as a share of those of the plain network or the --baseline (0.5 or
            50%), or a count (250M).
        ms: Budget: mean milliseconds per image at --batch-size, measured on this machine.
        max_drop: Largest loss of accuracy against the plain network, or the --baseline: 0.5 or 0.5% is half a
            percentage point.
        target_accuracy: Accuracy to reach, such as 75% or 0.75.
        risk: Guaranteed bound on the accuracy lost on new images, such as 1% or 0.01; see --delta.
        delta: With --risk: the bound holds with probability 1 - delta, such as 0.05 or 5%; default: it holds in
            expectation.
        save: Cost to minimise if the goal is an accuracy, a drop or a risk; default: macs.
        batch_size: Batch size at which milliseconds are measured.
        runtime: Runtime used to measure milliseconds; choose the one you will deploy. Default: torch in the run's
            precision.
        never_slower_at: Batch sizes, such as 1,64,256, at which the policy may be at most 2 % slower than the plain
            network; exits are disabled until this holds.
        score: Measure of an exit's certainty, which is compared with its threshold: the largest probability
            (confidence), its distance to the second (margin), 1 minus the normalised entropy (entropy), the number of
            consecutive exits that agree (patience), or a small predictor that is fitted for each exit on val (learned).
        answer: Output for a sample: that of its exit (exit), or an ensemble of the enabled exits up to it: the
            arithmetic or geometric mean of their probabilities, or the sum of their logits.
        temperatures: Divisors of the logits: `fit` (by likelihood on cal), a number, or one number per exit,
            comma-separated.
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
        never_slower_at=never_slower_at,
        temperatures=temperatures,
    )
    reporter = ConsoleReporter(not json)
    result = calibrate_run(
        run,
        goal,
        score=score,
        answer=answer,
        baseline=baseline,
        weights=weights,
        data_dir=data_dir,
        device=device,
        reporter=reporter,
    )
    show(result, json)
