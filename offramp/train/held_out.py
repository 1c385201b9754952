"""Held-out batches for methods that learn from them: one per training step, the same ones after a resume."""

from collections.abc import Callable, Iterator

from offramp.data.loading import Loader
from offramp.outputs import Batch


class HeldOut:
    """Endless batches of a split, in a new order in each pass; a step's batch depends on (seed, step) only.

    Args:
        make: creates the shuffled loader when the first batch is requested.
    """

    def __init__(self, make: Callable[[], Loader]) -> None:
        self.make = make
        self.loader: Loader | None = None
        self.next = -1
        self.batches: Iterator[Batch] = iter(())

    def for_step(self, step: int) -> Batch:
        """The batch of a training step; consecutive steps continue reading, any other step starts there."""
        if self.loader is None:
            self.loader = self.make()
        turn, place = divmod(step, len(self.loader))
        if step != self.next or place == 0:
            self.batches = self.loader.epoch(turn, place)
        self.next = step + 1
        return next(self.batches)
