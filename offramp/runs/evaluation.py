"""What evaluating a run results in, as numbers and as text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.measure.text_table import text_table
from offramp.measure.units import count, percent
from offramp.text import shell_word


@dataclass(frozen=True)
class PlainNetwork:
    """The plain network of the same weights: its final exit alone.

    Attributes:
        accuracy: in [0, 1].
        macs: multiply-adds per image.
        ms: milliseconds per image at the batch size; None if no batch was whole.
    """

    accuracy: float
    macs: int | float
    ms: float | None


@dataclass(frozen=True)
class EarlyExits:
    """What exiting early does on test, beside the plain network.

    Attributes:
        policy: thresholds, enabled exits and score.
        batch_size: of the measured times.
        shares: (E,) of the samples that leave at each exit.
        accuracy: in [0, 1].
        macs: mean multiply-adds per image as run.
        ms: milliseconds per image; None if no batch was whole.
        plain: the plain network.
        speedup: median over batches of the plain network's time by this one's; None if no batch was whole.
        device: that it was computed and measured on, `cpu` or `cuda`; `provenance` names it.
    """

    policy: dict[str, Any]
    batch_size: int
    shares: list[float]
    accuracy: float
    macs: int | float
    ms: float | None
    plain: PlainNetwork
    speedup: float | None
    device: str = "cpu"

    @property
    def gain(self) -> str:
        """What is saved in operations and in time, or what it costs."""
        saved, faster = self.plain.macs / self.macs, self.speedup or 1.0
        operations = f"{saved:.2f}x fewer operations" if saved >= 1 else f"{1 / saved:.2f}x more operations"
        if f"{faster:.2f}" == "1.00":
            clock = "as fast as plain"
        else:
            clock = f"{faster:.2f}x faster" if faster > 1 else f"{1 / faster:.2f}x slower"
        return f"{operations}, {clock} (median of pairs)"

    def __str__(self) -> str:
        rows = [
            [name, percent(side.accuracy), count(side.macs), "–" if side.ms is None else f"{side.ms:.3f}"]
            for name, side in (("adaptive", self), ("plain", self.plain))
        ]
        title = f"early exit, measured at batch size {self.batch_size} on {self.device}"
        text = text_table(title, ["", "accuracy %", "mean MACs as run", "ms per image"], rows)
        untimed = "no times: test has no full batch of this size; take a smaller batch size"
        return f"{text}\n{self.gain if self.speedup else untimed}"


@dataclass(frozen=True)
class Evaluation:
    """What a run does on its test split; `print` shows it as a table.

    Attributes:
        run: folder of the run.
        weights: `last` or `best`.
        epoch: that the weights are of, counted from 1.
        split: always `test`.
        samples: how many.
        accuracy: of every exit, in [0, 1].
        top5: share of samples whose label is among the five largest logits, of every exit.
        ensemble: accuracy of the sum of all exits' logits (of `one`: of its gated ensemble).
        calibration_error: expected calibration error of every exit.
        macs: multiply-adds per image up to each exit.
        macs_cumulative: the same with the branches of the exits before.
        parameters: of the whole network.
        adaptive: what exiting early does; None if there is no policy.
        config: the resolved configuration that was trained.
        training: what `result.json` holds; None if training has not finished.
        provenance: command, versions, hardware and commit.
        outputs: names of the networks that were trained together; None for the exits of one network.
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
    return f"{result.run}: test, {result.samples:,} samples, epoch {result.epoch} ({result.weights})"


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
        rows.append([name, *accuracies, count(result.macs[exit]), f"{relative:.2f}", share])
    rows.append(["ensemble", percent(result.ensemble), "", "", "", ""])
    table = text_table(_title(result), ["exit", "accuracy %", "top-5 %", "MACs", "of plain", "exits here %"], rows)
    return f"{table}\nno policy yet: fit one with `offramp calibrate`" if adaptive is None else f"{table}\n\n{adaptive}"


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
