"""What the engine keeps of the requests that it has accepted, and the results that it returns. Runs without torch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.early_exit.runtime import Answer
from offramp.serve.rows import SampleRow


class SampleResult(NamedTuple):
    """The result of one sample.

    Attributes:
        logits: (C,), as the policy gives them.
        exit: counted from 0 among all exits.
        score: at that exit.
        ms: time in the network, every batch's shared equally.
        late: whether it was answered at its deadline, before the policy let it exit.
    """

    logits: NDArray[np.float32]
    exit: int
    score: int | float
    ms: int | float
    late: bool


class Failed(Exception):
    """A segment failed; the message says which and why."""


Result = SampleResult | Failed
Sink = Callable[[Sequence[tuple[Any, list[Result]]]], None]
"""Takes the results of some requests, with the keys that they were submitted under; called in the engine's thread."""


class Request:
    """What the engine keeps of a request: who waits for it, and the results of its samples so far."""

    __slots__ = ("key", "results", "samples", "sink", "submitted")

    def __init__(self, key: Any, sink: Sink, samples: int, submitted: int | float) -> None:
        self.key, self.sink, self.submitted = key, sink, submitted
        self.samples, self.results = samples, dict[int, Result]()

    def add(self, place: int, result: Result) -> bool:
        """Keep the result of one sample; returns whether all are there."""
        self.results[place] = result
        return len(self.results) == self.samples

    def all(self) -> list[Result]:
        """The results of all samples, in their order."""
        return [self.results[place] for place in range(self.samples)]


class Ticket:
    """What the engine keeps of a sample: the request that it belongs to, where its data are, the result so far."""

    __slots__ = ("best", "ms", "place", "request", "row")

    def __init__(self, request: Request, place: int, row: SampleRow) -> None:
        self.request, self.place, self.row = request, place, row
        self.ms = 0.0
        self.best: tuple[Answer, int] | None = None

    def outcome(self, late: bool) -> SampleResult:
        """Its result at the last exit that it passed."""
        assert self.best is not None
        return sample_result(*self.best, self.ms, late)


def sample_result(answer: Answer, index: int, ms: int | float, late: bool) -> SampleResult:
    """The result of sample `index` of a batch."""
    return SampleResult(answer.logits[index], int(answer.exit[index]), float(answer.score[index]), ms, late)
