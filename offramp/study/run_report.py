"""What a report knows of one run, and what follows from it: plain numbers, from one trace of test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from offramp.early_exit.policy import ExitPolicy, stale
from offramp.measure.cost import Pieces, as_run
from offramp.measure.network_summary import Description
from offramp.outputs import Trace
from offramp.study.exit_decisions import Left, leave


@dataclass(frozen=True)
class RunReport:
    """One run, and everything that its pages are made from.

    Attributes:
        name: what the page calls it; folder: where it lies.
        config: the resolved options; training: what `result.json` says, None where training is not done.
        classes: names of the C classes.
        trace: all exits on test; summary: of it, as `offramp.measure.accuracy.summary` makes it.
        curves: `anytime`, `budgeted` (empty where nothing was held out) and `plain`, costs in `macs_cumulative`.
        network: every stage and exit in numbers; pieces: their multiply-adds.
        ms: milliseconds per image of the pieces, None if not measured; batch_size: at which they were.
        policy: None where the run was not calibrated; fitted: where the policy says it comes from.
        history: the records of `metrics.jsonl`.
        pictures: ids of samples -> images uint8 (B, channels, H, W).
        images: how many of the easiest, and of the hardest, are shown of every exit.
        made_from: digests of the files and traces that all this was read from.
    """

    name: str
    folder: str
    weights: str
    epoch: int
    config: Mapping[str, Any]
    training: Mapping[str, Any] | None
    classes: Sequence[str]
    trace: Trace
    summary: Mapping[str, Any]
    curves: Mapping[str, Any]
    network: Description
    pieces: Pieces
    ms: Pieces | None
    batch_size: int | None
    policy: ExitPolicy | None
    fitted: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    pictures: Callable[[Any], Any] | None
    images: int
    made_from: Mapping[str, Any]

    @property
    def exits(self) -> int:
        """E."""
        return len(self.trace.logits)

    @cached_property
    def labels(self) -> Any:
        """The true class of every sample."""
        assert self.trace.labels is not None
        return self.trace.labels.numpy()

    @cached_property
    def left(self) -> Left | None:
        """Where every sample leaves under the policy, if there is one."""
        return leave(self.policy, self.trace.logits.numpy(), self.labels) if self.policy else None

    @property
    def prices(self) -> list[int]:
        """Multiply-adds of a sample that leaves at each exit, as the policy runs; 0 where an exit is off."""
        enabled = self.policy.enabled if self.policy else (True,) * self.exits
        paid = iter(accumulate(as_run(self.pieces, enabled)))
        return [next(paid) if on else 0 for on in enabled]

    @cached_property
    def leaving(self) -> dict[str, Any] | None:
        """What the policy does on test: accuracy, mean cost, and the share that leaves at each exit."""
        if self.left is None:
            return None
        shares = self.left.shares(self.exits)
        return {
            "accuracy": float((self.left.answer == self.labels).mean()),
            "cost": sum(share * price for share, price in zip(shares, self.prices, strict=True)),
            "shares": shares,
        }

    @property
    def stale(self) -> str:
        """What to say where the policy is of other weights than these."""
        return stale(self.fitted, self.folder, self.weights, self.epoch, self.made_from.get("weights"))

    @property
    def numbers(self) -> dict[str, Any]:
        """The page's numbers as plain values in base units."""
        measured = {"batch_size": self.batch_size, **_plain(self.ms)} if self.ms else None
        return {
            "name": self.name,
            "run": self.folder,
            "weights": self.weights,
            "epoch": self.epoch,
            **self.summary,
            **{key: self.curves[key] for key in ("anytime", "budgeted", "plain")},
            "policy": self.leaving,
            "macs": _plain(self.pieces),
            "ms": measured,
        }


def _plain(pieces: Pieces) -> dict[str, Any]:
    return {"stages": list(pieces.stages), "branches": list(pieces.branches)}
