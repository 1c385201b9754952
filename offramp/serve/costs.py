"""What a segment costs for every batch size, and the largest batch that is worth waiting for. Runs without torch."""

from bisect import bisect_left
from dataclasses import dataclass, replace

USEFUL = 1.1
"""A batch is large enough if its cost per sample is at most this many times the lowest: all samples of a batch wait for
it, so that larger batches, which save little, raise the highest latencies."""


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one segment for a batch, linear between the sizes that were measured.

    Attributes:
        sizes: batch sizes in ascending order; the first is 1.
        seconds: of a whole batch of each size.
        overhead: seconds that every batch takes in addition, whatever its size.
    Raises:
        ValueError: if the sizes do not ascend from 1 or a time is not positive.
    """

    sizes: tuple[int, ...]
    seconds: tuple[int | float, ...]
    overhead: int | float = 0.0

    def __post_init__(self) -> None:
        ascending = all(one < other for one, other in zip(self.sizes, self.sizes[1:]))
        if len(self.sizes) != len(self.seconds) or self.sizes[:1] != (1,) or not ascending:
            raise ValueError(f"a cost curve needs sizes that ascend from 1 and as many times, got {self}")
        if not all(second > 0 for second in self.seconds):
            raise ValueError(f"a cost curve needs positive times, got {self.seconds}")

    def __call__(self, batch: int) -> int | float:
        """Seconds of a batch; beyond the largest size measured, proportional to it but for the overhead."""
        if batch >= self.sizes[-1]:
            return self.overhead + self.seconds[-1] * batch / self.sizes[-1]
        above = bisect_left(self.sizes, batch)
        if self.sizes[above] == batch:
            return self.overhead + self.seconds[above]
        low, high = self.sizes[above - 1], self.sizes[above]
        share = (batch - low) / (high - low)
        return self.overhead + (1 - share) * self.seconds[above - 1] + share * self.seconds[above]

    def plus(self, seconds: int | float) -> "CostCurve":
        """The same with so many more seconds for each batch, whatever its size."""
        return replace(self, overhead=self.overhead + seconds)

    def lowest(self, most: int) -> int | float:
        """The least seconds per sample of a batch of at most `most` samples."""
        return min(self(size) / size for size in self._up_to(most))

    def useful(self, most: int) -> int:
        """The smallest batch of at most `most` samples whose cost per sample is within `USEFUL` of the lowest."""
        lowest = self.lowest(most)
        return min(size for size in self._up_to(most) if self(size) / size <= USEFUL * lowest)

    def _up_to(self, most: int) -> list[int]:
        """The sizes that were measured, and larger ones: of these, each takes a smaller share of the overhead."""
        return [size for size in sorted({*self.sizes, *powers(most)}) if size <= most]


def linear(fixed: int | float, each: int | float, most: int) -> CostCurve:
    """A curve of `fixed` seconds for a batch and `each` seconds for each of its samples, up to `most` samples."""
    sizes = powers(most)
    return CostCurve(sizes, tuple(fixed + each * size for size in sizes))


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return (*sizes, most)
