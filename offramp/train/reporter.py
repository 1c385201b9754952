"""Progress and notes of a training run, and the exceptions with which it stops early."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """What the training loop calls to report progress."""

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        """Training begins at this epoch and step (from 0); `epochs` and `steps` per epoch are the totals."""

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        """A step of the epoch is done; `terms` are the losses that were read last."""

    def epoch_done(self, record: dict[str, Any]) -> None:
        """An epoch is done and evaluated."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Diverged(RuntimeError):
    """A loss term or a weight is no longer finite."""


class Interrupted(Exception):
    """Ctrl-C: the run was saved and can be resumed."""
