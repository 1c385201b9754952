"""What a training method is: an objective, and four more seams that most methods leave as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from offramp.net import BuildBackbone, BuildBranch, Tap, attach, share
from offramp.outputs import Batch, ExitOutputs

Terms = dict[str, Tensor]
"""Weighted scalars by name; their SUM is what is minimised, so what is logged is what is trained."""

Objective = Callable[[ExitOutputs, Batch, float], Terms]
"""(outputs, batch, progress) -> terms. progress = epoch / epochs in [0, 1), constant within an epoch.

A function, or an nn.Module where it owns state or learned parts; those are trained and checkpointed with the run and
never exported.
"""

Step = Callable[..., Terms]
"""One optimiser step, (parts, batch, progress) -> terms; see `offramp.methods._parts.Parts` for what it works on."""


def build_one(backbone: BuildBackbone, branch: BuildBranch) -> nn.Module:
    """The network most methods train: one backbone with a branch behind every stage."""
    return attach(backbone(), branch)


@dataclass(frozen=True)
class Phase:
    """A part of the training run: what trains (`all`, `backbone`, `exits`), and for which share of the epochs."""

    trains: str = "all"
    share: float = 1.0
    rate: float = 1.0


everything = Phase()


@dataclass(frozen=True)
class Method:
    """A training method, complete: what `build(**hyper)` in each file of this folder answers.

    `needs_held_out` says that its step learns from held-out batches: without a val split it is refused.
    `optimizers` are the names of those that its step can look ahead with, where that matters; `alone` says why it
    cannot train on several processes, where it cannot.
    """

    objective: Objective
    network: Callable[[BuildBackbone, BuildBranch], nn.Module] = build_one
    tap: Tap = share
    step: Step | None = None
    phases: tuple[Phase, ...] = (everything,)
    needs_held_out: bool = False
    optimizers: tuple[str, ...] = ()
    alone: str = ""

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a method needs at least one phase")


Build = Callable[..., Method]
Hyper = dict[str, Any]
