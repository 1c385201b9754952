"""The best pair of thresholds, exactly: as good as trying all pairs, in N·√N instead of N² steps."""

from math import isqrt

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from offramp.early_exit.coordinate_ascent import ExitTable, Point, SearchGoal, limit, point, rank
from offramp.early_exit.policy import NEVER


class _Prefixes:
    """Values along the second exit's order, some of them removed, and the best position to cut them.

    They are kept in buckets: a removal updates one bucket, a query reads all buckets' sums and one bucket.
    """

    def __init__(self, values: Int[ndarray, "N"], ends: Bool[ndarray, "N"]) -> None:
        self.size = max(isqrt(len(values)), 1)
        buckets = -(-len(values) // self.size)
        self.values = np.zeros((buckets, self.size), np.int64)
        self.values.ravel()[: len(values)] = values
        self.counts = np.zeros((buckets, self.size), np.int64)
        self.counts.ravel()[: len(values)] = 1
        self.closed = np.ones((buckets, self.size), bool)
        self.closed.ravel()[: len(values)] = ~ends
        self.sums, self.remaining = self.values.sum(1), self.counts.sum(1)
        self.peaks = np.where(self.closed, _LOW, self.values.cumsum(1)).max(1)

    def remove(self, places: Int[ndarray, "M"]) -> None:
        """Remove samples that take the first exit."""
        for place in places.tolist():
            bucket, inside = divmod(place, self.size)
            self.sums[bucket] -= self.values[bucket, inside]
            self.remaining[bucket] -= 1
            self.values[bucket, inside] = self.counts[bucket, inside] = 0
        for bucket in np.unique(places // self.size).tolist():
            self.peaks[bucket] = self._inside(bucket).max()

    def _inside(self, bucket: int) -> Int[ndarray, "S"]:
        return np.where(self.closed[bucket], _LOW, self.values[bucket].cumsum())

    def last_best(self, least: int) -> int:
        """The position to cut: at least `least` samples exit, with the highest value, the last of equal ones."""
        start = 0
        if least > 0:
            bucket = int(np.searchsorted(self.remaining.cumsum(), least))
            before = int(self.remaining[:bucket].sum())
            start = bucket * self.size + int(np.searchsorted(self.counts[bucket].cumsum() + before, least))
        bucket, inside = divmod(start, self.size)
        base = np.concatenate(([0], self.sums.cumsum()))
        partial = self._inside(bucket)[inside:] + base[bucket]
        peaks = self.peaks[bucket + 1 :] + base[bucket + 1 : -1]
        best = max(int(partial.max()), int(peaks.max()) if len(peaks) else _LOW)
        if least <= 0 and best < 0:
            return 0  # no sample exits here
        if len(peaks) and peaks.max() == best:
            last_bucket = bucket + len(peaks) - int(peaks[::-1].argmax())
            return last_bucket * self.size + self._last(last_bucket, best - int(base[last_bucket]))
        return bucket * self.size + inside + _last(partial, best)

    def last_at_least(self, value: int) -> int:
        """The last position whose value is at least this; -1 if there is none, 0 if no sample exits."""
        base = np.concatenate(([0], self.sums.cumsum()))
        buckets = np.flatnonzero(self.peaks + base[:-1] >= value)
        if not len(buckets):
            return 0 if value <= 0 else -1
        bucket = int(buckets[-1])
        inside = np.flatnonzero(self._inside(bucket) + base[bucket] >= value)
        return bucket * self.size + int(inside[-1]) + 1

    def _last(self, bucket: int, value: int) -> int:
        return _last(self._inside(bucket), value)


_LOW = -(2**40)
_UNKNOWN = np.empty(0)


def _last(values: Int[ndarray, "S"], value: int) -> int:
    """1 + the last index of this value."""
    return int(np.flatnonzero(values == value)[-1]) + 1


def pair(table: ExitTable, goal: SearchGoal) -> Point:
    """The best point of three exits: no pair of thresholds is better on these samples.

    For every threshold of the first exit, starting with no sample exiting, the values of the second exit are
    updated and its best cut is looked up.
    """
    n = table.score.shape[1]
    first, second = table.order[0], table.order[1]
    ends = np.append(table.score[1][second][1:] < table.score[1][second][:-1], True)
    prefixes = _Prefixes((table.right[1] - table.right[2])[second].astype(np.int64), ends)
    place = np.empty(n, np.int64)
    place[second] = np.arange(n)
    falls = table.score[0][first]
    cuts = [0, *(np.flatnonzero(falls[1:] < falls[:-1]) + 1).tolist(), n]
    first_right = np.concatenate(([0], table.right[0][first].cumsum(dtype=np.int64)))
    rest = np.concatenate(([0], table.right[2][first].cumsum(dtype=np.int64)))
    best, best_cuts = (-np.inf,) * 3, (0, 0)
    removed = 0
    for cut in cuts:
        prefixes.remove(place[first[removed:cut]])
        removed = cut
        right = int(first_right[cut] + rest[-1] - rest[cut])
        second_cut = _second(table, prefixes, cut, right, goal)
        if second_cut is None:
            continue
        key = rank(goal, Point(_UNKNOWN, *_does(table, prefixes, cut, second_cut, right)), n)
        if key > best:
            best, best_cuts = key, (cut, second_cut)
    return point(table, _thresholds(table, *best_cuts))


def _second(table: ExitTable, prefixes: _Prefixes, cut: int, right: int, goal: SearchGoal) -> int | None:
    """The best cut of the second exit's order if `cut` samples take the first exit; None if no cut reaches the goal."""
    n = table.score.shape[1]
    if goal.cost is None:
        second_cut = prefixes.last_at_least(int(limit(goal, n)) - right)
        return second_cut if second_cut >= 0 else prefixes.last_best(0)
    spent = cut * table.costs[0] + (n - cut) * table.costs[2]
    least = int(np.ceil((spent - limit(goal, n)) / (table.costs[2] - table.costs[1]) - 1e-9))
    return prefixes.last_best(least) if least <= n - cut else n


def _does(table: ExitTable, prefixes: _Prefixes, cut: int, second_cut: int, right: int) -> tuple[int, float]:
    bucket, inside = divmod(second_cut, prefixes.size)
    gained = int(prefixes.sums[:bucket].sum())
    leaving = int(prefixes.remaining[:bucket].sum())
    if inside:
        gained += int(prefixes.values[bucket, :inside].sum())
        leaving += int(prefixes.counts[bucket, :inside].sum())
    stay = table.score.shape[1] - cut - leaving
    return right + gained, float(cut * table.costs[0] + leaving * table.costs[1] + stay * table.costs[2])


def _thresholds(table: ExitTable, cut: int, second_cut: int) -> ndarray:
    levels = [
        float(table.score[exit][table.order[exit][place - 1]]) if place else NEVER
        for exit, place in ((0, cut), (1, second_cut))
    ]
    return np.array([*levels, -NEVER])
