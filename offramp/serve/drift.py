"""Whether a server's answers still look like those on cal: a sequential test of a stated false-alarm rate.

Runs without torch. Every answer is placed among all earlier ones and those of cal by how hard it was: a later exit is
harder than an earlier one, and at the same exit a lower score is harder. If nothing has changed, its rank is uniformly
distributed and independent of all before (a smoothed conformal p-value). A fair game that bets on ranks that are too
high or too low then exceeds 1 / false_alarm with at most that probability, however long it runs (Ville's
inequality). The bets are those of the Simple Jumper: Vovk, Petej, Nouretdinov, Ahlberg, Carlsson and Gammerman,
Retrain or not retrain: conformal test martingales for change-point detection, PMLR 152, 2021, algorithm 1.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.bundle.manifest import Manifest
from offramp.early_exit.score_bins import BINS, score_bin

JUMP = 0.01
"""Share of the capital that is distributed again over the bets at every answer, as in the source."""
BETS = (-1.0, 0.0, 1.0)
ENOUGH = 50
"""Samples of cal below which nothing is tested."""


@dataclass(frozen=True)
class CalReference:
    """Counts on cal: for each exit, the number of samples that exit there with a score in each of `BINS` equal bins."""

    counts: tuple[tuple[int, ...], ...]

    @property
    def shares(self) -> tuple[int | float, ...]:
        """The share of each exit."""
        total = sum(map(sum, self.counts))
        return tuple(sum(row) / total for row in self.counts)


def reference(manifest: Manifest) -> CalReference | None:
    """The reference that `offramp export` stored; None if a bundle has none, or an invalid one."""
    policy = manifest.provenance.get("policy")
    counts = policy.get("scores") if isinstance(policy, dict) else None
    right = (
        isinstance(counts, list)
        and len(counts) == manifest.exits
        and all(isinstance(row, list) and len(row) == BINS for row in counts)
        and all(type(count) is int and count >= 0 for row in counts for count in row)
    )
    if not right or sum(map(sum, counts)) < ENOUGH:  # type: ignore[arg-type]
        return None
    return CalReference(tuple(map(tuple, counts)))  # type: ignore[arg-type]


class DriftMonitor:
    """Watches the answers of one version; called by the engine's thread, read at any time.

    Args:
        reference: of cal; without one, nothing is tested.
        false_alarm: probability of an alarm at any time although nothing has changed.
        alarmed: called once, when the alarm is raised.
    """

    def __init__(
        self,
        reference: CalReference | None,
        false_alarm: int | float = 0.01,
        alarmed: Callable[[], None] = lambda: None,
        seed: int = 0,
    ) -> None:
        self.reference, self.false_alarm, self.alarmed = reference, false_alarm, alarmed
        exits = 0 if reference is None else len(reference.counts)
        self.seen = [[0] * BINS for _ in range(exits)]
        self.samples = 0
        self.alarm: int | None = None
        self.largest = 0.0  # of the capital's logarithm
        self._bag = [] if reference is None else [count for row in reference.counts for count in reversed(row)]
        self._total = sum(self._bag)
        self._capitals = [1 / len(BETS)] * len(BETS)
        self._log = 0.0  # the logarithm of the whole capital; the capitals are kept as shares of it
        self._random = random.Random(seed)

    def add(self, exit: int, score: int | float) -> None:
        """Count one sample, which exited at this exit (counted from 0) with this score; ignores NaN and infinities."""
        if self.reference is None or not math.isfinite(score):  # inputs of a request may overflow in the network
            return
        bin = score_bin(score)
        self.seen[exit][bin] += 1
        self.samples += 1
        self._bet(self._rank(exit * BINS + BINS - 1 - bin))

    def _rank(self, place: int) -> int | float:
        """The share of answers that are harder, ties broken at random; takes the answer into the bag."""
        self._bag[place] += 1
        self._total += 1
        harder = sum(self._bag[place + 1 :])
        return (harder + self._random.random() * self._bag[place]) / self._total

    def _bet(self, rank: int | float) -> None:
        mixed = [(1 - JUMP) * capital + JUMP / len(BETS) for capital in self._capitals]
        grown = [capital * (1 + bet * (rank - 0.5)) for capital, bet in zip(mixed, BETS)]
        growth = sum(grown)
        self._capitals = [capital / growth for capital in grown]
        self._log += math.log(growth)
        self.largest = max(self.largest, self._log)
        if self.alarm is None and self._log >= -math.log(self.false_alarm):
            self.alarm = self.samples
            self.alarmed()

    def report(self) -> dict[str, Any]:
        """What is known now, as `/drift` prints it."""
        if self.reference is None:
            return {
                "tested": False,
                "reason": "the bundle contains no scores of cal: calibrate the run again and export it",
            }
        live = [sum(row) / max(1, self.samples) for row in self.seen]
        return {
            "tested": True,
            "alarm": self.alarm is not None,
            "alarm_after": self.alarm,
            "samples": self.samples,
            "false_alarm_rate": self.false_alarm,
            "log10_evidence": self._log / math.log(10),
            "log10_evidence_largest": self.largest / math.log(10),
            "log10_evidence_for_alarm": -math.log10(self.false_alarm),
            "shares": live,
            "cal_shares": list(self.reference.shares),
            "scores": _normalised(self.seen, self.samples),
            "cal_scores": _normalised(self.reference.counts, sum(map(sum, self.reference.counts))),
        }


def _normalised(counts: Sequence[Sequence[int]], total: int) -> list[list[float]]:
    return [[count / max(1, total) for count in row] for row in counts]
