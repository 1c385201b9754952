"""What a run tells, and to whom: progress, notes, and the two ways to end before the end."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """Who is told how the run goes."""

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        """Training begins at this epoch and step, of so many."""

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        """A step of the epoch is done; the terms are those of the last look."""

    def epoch_done(self, record: dict[str, Any]) -> None:
        """An epoch is done and evaluated."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Diverged(RuntimeError):
    """A loss term or a weight is no longer a number."""


class Interrupted(Exception):
    """Ctrl-C: the run was saved and can be resumed."""
