"""What a report knows of one run, and what follows from it: plain numbers, from one trace of test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_origin import stale
from offramp.measure.cost import Pieces, as_run
from offramp.measure.network_summary import NetworkSummary
from offramp.outputs import Trace
from offramp.study.exit_decisions import ExitDecisions, apply_policy


@dataclass(frozen=True)
class RunReport:
    """One run, and everything that its section of the page is made from.

    Attributes:
        name: its name on the page; folder: the run's folder.
        config: the resolved options, as it was trained; precision: what is computed in here.
        training: the content of `result.json`, None if training is not finished.
        classes: names of the C classes.
        trace: all exits on test; summary: of that trace, by `offramp.measure.accuracy.summary`.
        curves: `anytime`, `budgeted` (empty if nothing was held out), `plain` and `baseline` (None without one),
            costs in `macs_cumulative`.
        network: every stage and exit in numbers; pieces: their multiply-adds.
        ms: milliseconds per image of the pieces, None if not measured; batch_size: at which they were.
        policy: None if the run was not calibrated; fitted: the provenance of the policy.
        history: the records of `metrics.jsonl`.
        pictures: ids of samples -> images uint8 (B, channels, H, W).
        images: how many of the easiest, and of the hardest, are shown of every exit.
        made_from: digests of the files and traces that all this was read from.
        auroc: of every exit, how well its score ranks samples by whether it is right (see `offramp.Evaluation`).
    """

    name: str
    folder: str
    weights: str
    epoch: int
    config: Mapping[str, Any]
    precision: str
    training: Mapping[str, Any] | None
    classes: Sequence[str]
    trace: Trace
    summary: Mapping[str, Any]
    curves: Mapping[str, Any]
    network: NetworkSummary
    pieces: Pieces
    ms: Pieces | None
    batch_size: int | None
    policy: ExitPolicy | None
    fitted: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    pictures: Callable[[Any], Any] | None
    images: int
    made_from: Mapping[str, Any]
    auroc: Sequence[float | None] = ()

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
    def decisions(self) -> ExitDecisions | None:
        """The exit of every sample under the policy, if there is one."""
        return apply_policy(self.policy, self.trace.logits.numpy(), self.labels) if self.policy else None

    @property
    def prices(self) -> list[int]:
        """Multiply-adds of a sample at each exit, as the policy runs; 0 if the exit is disabled."""
        enabled = self.policy.enabled if self.policy else (True,) * self.exits
        paid = iter(accumulate(as_run(self.pieces, enabled)))
        return [next(paid) if on else 0 for on in enabled]

    @cached_property
    def leaving(self) -> dict[str, Any] | None:
        """The policy on test: accuracy, mean cost, and the share of samples at each exit."""
        if self.decisions is None:
            return None
        shares = self.decisions.shares(self.exits)
        return {
            "accuracy": float((self.decisions.answer == self.labels).mean()),
            "cost": sum(share * price for share, price in zip(shares, self.prices, strict=True)),
            "shares": shares,
        }

    @property
    def stale(self) -> str:
        """A warning if the policy was fitted on other weights, else nothing."""
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
            "baseline": self.curves.get("baseline"),
            "auroc": list(self.auroc),
            "policy": self.leaving,
            "macs": _plain(self.pieces),
            "ms": measured,
        }


def _plain(pieces: Pieces) -> dict[str, Any]:
    return {"stages": list(pieces.stages), "branches": list(pieces.branches)}
