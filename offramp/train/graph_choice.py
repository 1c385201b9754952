"""Whether the steps of a run are faster as one CUDA graph: timed on the run's own steps, whose numbers are the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PARTS = (10, 1, 10)
"""Steps that are timed: kernel by kernel, the one that captures, as a graph."""


class NotCaptured(Exception):
    """A step that cannot be captured; nothing was computed."""


class GraphChoice:
    """Decides for each step of a run whether it is taken as a graph.

    Args:
        requested: take every step so; otherwise the first ones are timed, and the faster way is taken.
        now: seconds, once the device has computed everything that it was given.
        lasts: steps after which a capture is repeated, so that each step pays its share; 0 if it is not.
        note: called with what was decided.
    """

    def __init__(self, requested: bool, now: Callable[[], float], lasts: int, note: Callable[[str], None]) -> None:
        self.result: bool | None = True if requested else None
        self.now, self.lasts, self.note = now, lasts, note
        self.seconds: list[float] = []  # per step of each of `PARTS`
        self.began: float | None = None
        self.steps = 0

    def graph(self) -> bool:
        """Whether the next step is taken as a graph."""
        if self.result is None:
            self._time()
        return bool(self.seconds) if self.result is None else self.result

    def interrupt(self) -> None:
        """Something else than steps comes now: time this part again."""
        self.began = None

    def refuse(self, reason: str) -> None:
        """Take no step as a graph from now on."""
        self.result = False
        self.note(f"graph: {reason}; kernels are started one by one")

    def _time(self) -> None:
        if self.began is None:
            self.began, self.steps = self.now(), 0
        elif self.steps == PARTS[len(self.seconds)]:
            now = self.now()
            self.seconds.append((now - self.began) / self.steps)
            self.began, self.steps = now, 0
            if len(self.seconds) == len(PARTS):
                self._decide()
        self.steps += 1

    def _decide(self) -> None:
        plain, capture, graph = self.seconds
        graph += capture / self.lasts if self.lasts else 0.0
        self.result = graph < plain
        what = "steps are taken as one CUDA graph" if self.result else "kernels are started one by one"
        self.note(f"graph: {what}, by a measurement: {1000 * graph:.2f} ms as a graph, {1000 * plain:.2f} ms without")


@contextmanager
def capturing() -> Iterator[None]:
    """Turns the error of a capture into one that says why the step cannot be captured.

    Raises:
        NotCaptured: if the step waits for the GPU, copies from the host, or needs more memory than there is.
    """
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError)
        reason = "the GPU's memory does not hold the graph" if full else str(error).strip().partition("\n")[0]
        raise NotCaptured(f"the step cannot be captured ({reason})") from error
