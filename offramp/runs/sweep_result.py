"""The result of a sweep: its runs, and the best of them on val."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offramp.measure.text_table import WIDTH, prose, text_table

METRICS = {
    "accuracy": "mean accuracy of the exits",
    "final": "accuracy of the final exit",
    "frontier": "area under the curve of accuracy against multiply-adds",
}


@dataclass(frozen=True)
class SweepTrial:
    """One run of a sweep.

    Attributes:
        run: its folder.
        options: the values that it was trained with.
        epochs: number of epochs that it was trained for.
        stopped: whether the scheduler stopped it early, because others were better.
        val_accuracy: of every exit after the last epoch, in [0, 1].
        score: the metric after the last epoch, on val.
        failure: reason of a failure; None if it did not fail.
    """

    run: str
    options: dict[str, str]
    epochs: int
    stopped: bool
    val_accuracy: list[float] | None
    score: float | None
    failure: str | None


@dataclass(frozen=True)
class SweepResult:
    """All runs of a sweep, the best first.

    Attributes:
        metric: the metric on val that they are ordered by.
        best: the completed run with the highest score; None if no run was completed.
        ledger: file with a line for each run that was trained to the end, evaluated on test.
        device: what they were trained and evaluated on.
    """

    metric: str
    best: SweepTrial | None
    trials: list[SweepTrial]
    ledger: str
    device: str

    def __str__(self) -> str:
        head = ["options", "epochs", "exits %", f"{self.metric} %", "state"]
        rows = [[_options(one.options), str(one.epochs), *_scores(one), _state(one)] for one in self.trials]
        title = f"{METRICS[self.metric]}, on val, on {self.device}"
        table = text_table(title, head, rows)
        if max(map(len, table.splitlines())) > WIDTH:  # the accuracy of every exit is in the JSON as well
            short, *others = [[*line[:2], *line[3:]] for line in (head, *rows)]
            table = text_table(title, short, others)
        return "\n\n".join([table, *self._remarks()])

    def _remarks(self) -> list[str]:
        """Why runs failed, and the best run."""
        failed = [prose(f"{_options(one.options)} failed: {one.failure}") for one in self.trials if one.failure]
        best = [prose(f"best: {_options(self.best.options)}, in {self.best.run}")] if self.best else []
        return [*failed, *best]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def _options(options: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def _scores(trial: SweepTrial) -> list[str]:
    exits = " ".join(f"{100 * (share or 0):.1f}" for share in trial.val_accuracy or ())
    return [exits, "" if trial.score is None else f"{100 * trial.score:.2f}"]


def _state(trial: SweepTrial) -> str:
    return "failed" if trial.failure else "stopped" if trial.stopped else "done"
