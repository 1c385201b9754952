"""What a task reports while it works. Nothing is printed unless the caller passes a reporter that prints."""

import warnings
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from offramp.progress import Advance, no_progress
from offramp.train.reporter import Reporter as TrainingReporter


@runtime_checkable
class Reporter(TrainingReporter, Protocol):
    """Callbacks of `train`, `calibrate`, `evaluate` and other functions while they work.

    To write a reporter, subclass `Silent` and override the methods that you need.
    """

    def warn(self, text: str) -> None:
        """Something that the user should correct."""

    def working(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Returns a context manager for work on `total` samples; it yields a function that takes the number done."""

    def stop(self) -> None:
        """The task has ended, or failed."""


class Silent:
    """The default reporter: it shows no progress, and warnings become Python warnings."""

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        """Training starts, or resumes, at this epoch and step (both from 0); `steps` are those of one epoch."""

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        """A training step has finished; `terms` are the losses that were read last."""

    def epoch_done(self, record: dict[str, Any]) -> None:
        """An epoch has finished; `record` is its line of metrics.jsonl."""

    def note(self, text: str) -> None:
        """One line of information for the user."""

    def warn(self, text: str) -> None:
        """Something that the user should correct: a `UserWarning`."""
        warnings.warn(text, stacklevel=4)

    def working(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Returns a context manager for work on `total` samples; it yields a function that takes the number done."""
        return no_progress(text, total)

    def stop(self) -> None:
        """The task has ended, or failed."""


SILENT = Silent()
