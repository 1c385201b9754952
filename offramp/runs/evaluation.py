"""What evaluating a run results in, as numbers and as text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.early_exit.frontier import FrontierPoint
from offramp.measure.plain_network import plain_note
from offramp.measure.text_table import prose, text_table
from offramp.measure.units import count, decimal, percent
from offramp.runs.baseline import Baseline, CostAtBaseline
from offramp.text import shell_word


@dataclass(frozen=True)
class Performance:
    """Accuracy and cost of one way to classify images: early exit, the plain network or a baseline.

    Attributes:
        accuracy: in [0, 1].
        macs: mean multiply-adds per image as run.
        ms: milliseconds per image at the batch size; None if there was no full batch.
    """

    accuracy: float
    macs: int | float
    ms: float | None


@dataclass(frozen=True)
class EarlyExits:
    """Accuracy and cost of early exit on test, compared with the plain network.

    Attributes:
        policy: thresholds, enabled exits and score.
        batch_size: batch size at which times were measured.
        shares: (E,) share of the samples that exit at each exit.
        accuracy: in [0, 1].
        macs: mean multiply-adds per image as run.
        ms: milliseconds per image; None if there was no full batch.
        plain: the plain network.
        speedup: median over batches of the time of the plain network / that of early exit; None if there was no full
            batch.
        device: device that computed, `cpu` or `cuda`; `provenance` has its name.
        baseline: the plain network that was given as baseline, timed in turn with the others; None without one.
        baseline_speedup: as `speedup`, with the time of the baseline.
    """

    policy: dict[str, Any]
    batch_size: int
    shares: list[float]
    accuracy: float
    macs: int | float
    ms: float | None
    plain: Performance
    speedup: float | None
    device: str = "cpu"
    baseline: Performance | None = None
    baseline_speedup: float | None = None

    @property
    def gain(self) -> str:
        """What is saved in operations and in time, or what it costs: against the baseline if there is one."""
        if self.baseline is not None:
            points = 100 * (self.accuracy - self.baseline.accuracy)
            against = gain(self.baseline.macs / self.macs, self.baseline_speedup, "baseline", " than the baseline")
            return f"{against}; {points:+.2f} points of accuracy"
        return gain(self.plain.macs / self.macs, self.speedup, "plain")

    def __str__(self) -> str:
        rows = [performance_row("early exit", self), performance_row("plain", self.plain)]
        rows += [performance_row("baseline", self.baseline)] if self.baseline else []
        title = f"early exit, measured at batch size {self.batch_size} on {self.device}"
        text = text_table(title, ["", "accuracy %", "mean MACs as run", "ms per image"], rows)
        untimed = "no times: test has no full batch of this size; take a smaller batch size"
        return f"{text}\n{self.gain if self.speedup else untimed}"


def performance_row(name: str, side: EarlyExits | Performance) -> list[str]:
    """Cells of a table: name, accuracy in percent, mean multiply-adds, milliseconds per image."""
    ms = "–" if side.ms is None else f"{side.ms:.3f}"
    return [name, percent(side.accuracy), count(side.macs), ms]


def gain(saved: float, speedup: float | None, name: str, than: str = "") -> str:
    """How many times fewer operations and how much faster, in words.

    Args:
        saved: operations of the other side by those of early exit.
        speedup: the same of the times; None if they were not measured.
        name: of the other side, if both are equally fast; `than`: of the other side, at the end of a comparison.
    """
    faster = speedup or 1.0
    operations = operations_text(saved)
    if f"{faster:.2f}" == "1.00":
        clock = f"as fast as {name}"
    else:
        clock = f"{faster:.2f}x faster" if faster > 1 else f"{1 / faster:.2f}x slower"
    return f"{operations}, {clock}{than} (median of pairs)"


def operations_text(saved: float) -> str:
    """How many times fewer operations, or more; `saved`: operations of the other side by those of early exit."""
    return f"{saved:.2f}x fewer operations" if saved >= 1 else f"{1 / saved:.2f}x more operations"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and cost of a run on its test split; `print` shows it as a table.

    Attributes:
        run: folder of the run.
        weights: `last` or `best`.
        epoch: epoch of the weights, counted from 1.
        split: always `test`.
        samples: number of test samples.
        accuracy: of every exit, in [0, 1].
        top5: share of samples whose label is among the five largest logits, of every exit.
        ensemble: accuracy of the ensemble of all exits, the sum of their logits (with the method `one`, of its gated
            ensemble), in [0, 1].
        calibration_error: expected calibration error of every exit.
        macs: multiply-adds per image up to each exit.
        macs_cumulative: the same, with the branches of all earlier exits.
        parameters: number of parameters of the whole network.
        adaptive: accuracy and cost of early exit; None if there is no policy.
        config: the resolved configuration that was trained.
        training: content of `result.json`; None if training has not finished.
        provenance: command, versions, hardware and commit.
        outputs: names of the networks that were trained together; None for the exits of one network.
        auroc: of every exit, the area under the ROC curve of its score as a classifier of correct and wrong predictions
            (0.5 for random scores); None if all predictions are correct, or all wrong.
        baseline: the plain network that was given as baseline; None without one.
        at_baseline: cost of early exit at the accuracy of the baseline and at half a point less; None without a
            baseline.
        frontier: accuracy and cost of the policies that were fitted on cal for ten budgets; None unless requested.
        budgeted_area: mean accuracy on test over all budgets up to the plain network's operations, see
            `offramp.early_exit.curves.area`; None unless the frontier was requested.
        images: digests of the images of `cal` and `test`; None unless the frontier was requested.
    """

    run: str
    weights: str
    epoch: int
    split: str
    samples: int
    accuracy: list[float]
    top5: list[float]
    ensemble: float
    calibration_error: list[float]
    macs: list[int]
    macs_cumulative: list[int]
    parameters: int
    adaptive: EarlyExits | None
    config: dict[str, Any]
    training: dict[str, Any] | None
    provenance: dict[str, Any]
    outputs: list[str] | None = None
    auroc: list[float | None] | None = None
    baseline: Baseline | None = None
    at_baseline: list[CostAtBaseline] | None = None
    frontier: list[FrontierPoint] | None = None
    budgeted_area: float | None = None
    images: dict[str, str] | None = None

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.run)

    def __str__(self) -> str:
        return _exits(self) if self.outputs is None else _networks(self, self.outputs)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@dataclass(frozen=True)
class Evaluations:
    """Every finished run of a comparison, evaluated; `print` shows a table for each."""

    runs: list[Evaluation]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.runs))


def _title(result: Evaluation) -> str:
    device = result.provenance["device"]
    return f"{result.run}: test, {result.samples:,} samples, epoch {result.epoch} ({result.weights}), on {device}"


def _exits(result: Evaluation) -> str:
    """Every exit, then exiting early beside the plain network."""
    adaptive, exits = result.adaptive, len(result.accuracy)
    rows = []
    for exit in range(exits):
        name = "final" if exit == exits - 1 else f"exit {exit + 1}"
        on = adaptive is None or adaptive.policy["enabled"][exit]
        share = "" if adaptive is None else percent(adaptive.shares[exit]) if on else "off"
        relative = result.macs[exit] / result.macs[-1]
        accuracies = percent(result.accuracy[exit]), percent(result.top5[exit])
        area = "–" if result.auroc is None else decimal(result.auroc[exit])
        quality = percent(result.calibration_error[exit]), area
        rows.append([name, *accuracies, *quality, count(result.macs[exit]), f"{relative:.2f}", share])
    rows.append(["ensemble", percent(result.ensemble), "", "", "", "", "", ""])
    head = ["exit", "accuracy %", "top-5 %", "ECE %", "AUROC", "MACs", "of plain", "exits here %"]
    table = text_table(_title(result), head, rows)
    return "\n".join((table, _no_policy(result) if adaptive is None else f"\n{adaptive}", *_against(result)))


def _no_policy(result: Evaluation) -> str:
    """Why there is no early exit to measure, or how to get it."""
    if len(result.accuracy) == 1:
        return "no early exits"
    if result.config.get("holdout") == 0:
        return "no policy: with holdout 0 there are no images to fit thresholds on"
    return "no policy yet: fit one with `offramp calibrate`"


def _against(result: Evaluation) -> list[str]:
    """What the plain network is, and what early exit costs at the accuracy of the baseline."""
    baseline = result.baseline
    if baseline is None:
        return [plain_note(result.accuracy)] if len(result.accuracy) > 1 else []
    shares = ", ".join(f"{percent(share)} % on {split}" for split, share in baseline.accuracy.items())
    time = "" if baseline.ms is None else f", {baseline.ms:.3f} ms"
    lines = [f"baseline {baseline.source}: {shares}, {count(baseline.macs)} MACs{time}"]
    return lines + [_at(cost, baseline) for cost in result.at_baseline or ()]


def _at(cost: CostAtBaseline, baseline: Baseline) -> str:
    where = f"{100 * cost.drop:g} points below it" if cost.drop else "at its accuracy"
    if cost.accuracy is None or cost.macs is None:
        return f"{where} on cal: no policy on these exits is that accurate"
    points = 100 * (cost.accuracy - baseline.accuracy["test"])
    time = "" if cost.ms is None else f", {cost.ms:.3f} ms"
    return prose(
        f"{where} on cal: {count(cost.macs)} MACs{time} on test ({operations_text(baseline.macs / cost.macs)}), "
        f"accuracy {percent(cost.accuracy)} % ({points:+.2f} points)"
    )


def _networks(result: Evaluation, names: list[str]) -> str:
    """Networks that were trained together, and what all of them cost."""
    rows = [
        [name, percent(accuracy), percent(top5), count(macs)]
        for name, accuracy, top5, macs in zip(names, result.accuracy, result.top5, result.macs, strict=True)
    ]
    trained = result.macs_cumulative[-1]
    if "ensemble" not in names[-1]:
        rows.append(["ensemble", percent(result.ensemble), "", count(trained)])
    return "\n".join(
        (
            text_table(_title(result), ["", "accuracy %", "top-5 %", "MACs"], rows),
            f"trained: {count(trained)} MACs per image (forward), {count(result.parameters)} parameters",
            f"`offramp deploy {shell_word(result.run)} --keep 1 --out DIR` extracts one of them as a run",
        )
    )
