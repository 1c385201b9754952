"""The result of a training run, as stored in `result.json`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.runs.run import trace_of_run
from offramp.text import quantity


@dataclass(frozen=True)
class EpochAccuracy:
    """The validation accuracy of one epoch.

    Attributes:
        epoch: counted from 1.
        val_accuracy: of every exit, in [0, 1]; None if nothing was held out.
    """

    epoch: int
    val_accuracy: list[float] | None


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run, as stored in `result.json`; other functions take it as their run.

    Attributes:
        run: folder of the run.
        epochs: how many were trained; fewer than configured if `patience` ended the run.
        seconds: duration of training, in seconds; of a resumed run, the sum over its parts.
        last: validation accuracy after the last epoch.
        best: validation accuracy of the epoch with the highest mean over the exits; None if nothing was held out.
        cost: forward multiply-adds per image, and number of parameters, of everything that was trained.
        provenance: command, versions, hardware and commit.
    """

    run: str
    epochs: int
    seconds: float
    last: EpochAccuracy
    best: EpochAccuracy | None
    cost: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.run)

    trace = trace_of_run

    def __str__(self) -> str:
        return f"{quantity(self.epochs, 'epoch')} in {self.seconds:.0f} s, kept in {self.run}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def trained_run(values: dict[str, Any]) -> TrainedRun:
    """The content of `result.json` as an object; unknown keys are ignored."""
    names = [field.name for field in dataclasses.fields(TrainedRun)]
    epochs = {key: EpochAccuracy(**values[key]) if values[key] else None for key in ("last", "best")}
    return TrainedRun(**{key: value for key, value in {**values, **epochs}.items() if key in names})


def epoch_accuracy(weights: Path) -> EpochAccuracy:
    """The accuracies in the header of weights; they are there even if records of metrics.jsonl were lost."""
    from offramp.train.checkpoint import load_weights

    about = load_weights(weights)[1]
    return EpochAccuracy(about["epoch"], about["val_accuracy"])
