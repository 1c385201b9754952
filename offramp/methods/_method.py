"""What a training method is: an objective, and further parts that most methods leave at their defaults."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from offramp.argument_types import check_fields
from offramp.net import BuildBackbone, BuildBranch, MultiExitNet, Tap, attach, share
from offramp.protocols import Objective, Terms

__all__ = ["Method", "Objective", "Phase", "Step", "Terms", "build_one", "contains", "everything"]

Step = Callable[..., Terms]
"""One optimizer step, (context, batch, progress) -> terms; `offramp.step.StepContext` says what it works on."""


def build_one(backbone: BuildBackbone, branch: BuildBranch) -> nn.Module:
    """The network most methods train: one backbone with a branch behind every stage."""
    return attach(backbone(), branch)


@dataclass(frozen=True)
class Phase:
    """A part of the training run: what trains, for which share of the epochs, at which rate.

    Every phase is a run of its own: it goes through the whole schedule, and momentum and the moving average of the
    weights start again. What does not train gets no gradients and keeps its batch statistics.

    Attributes:
        trains: `all`, `backbone` (the stages and the final exit) or `exits` (all others).
        share: of the epochs, in proportion to those of the other phases.
        rate: what the recipe's learning rate is multiplied with.
        modules: which modules of a network train, where that is not all that `trains` names.
        objective: what is minimised, where it is not the method's; it owns nothing that is learned.
        step: its optimizer step; default the method's, or a plain one if the phase has an objective of its own.
        begin: called with the network before the first step; it changes values in place and draws nothing at random.
        still: what does not train is in evaluation mode; otherwise its batch norms keep updating their statistics.
    """

    trains: Literal["all", "backbone", "exits"] = "all"
    share: float = 1.0
    rate: float = 1.0
    modules: Callable[[MultiExitNet], Iterable[nn.Module]] | None = None
    objective: Objective | None = None
    step: Step | None = None
    begin: Callable[[nn.Module], None] | None = None
    still: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.share > 0 and self.rate > 0):
            raise ValueError(f"a phase needs a share and a rate above 0, got {self.share} and {self.rate}")


everything = Phase()


def contains(*kinds: type[nn.Module]) -> Callable[[nn.Module], None]:
    """A `check_network` that refuses networks without a module of one of these kinds."""

    def check(net: nn.Module) -> None:
        if not any(isinstance(part, kinds) for part in net.modules()):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"the network has no {names}, which this method trains: build it by method.network(backbone, branch)"
            )

    return check


@dataclass(frozen=True)
class Method:
    """A training method, complete: what `build(**parameters)` in each file of this package returns.

    `cohort` builds one network of each of several kinds, for `net=a,b`; methods without it train one kind.
    `needs_held_out`: its step learns from held-out batches, so a run without a val split is refused.
    `optimizers` names the optimizers that its step works with; empty for any.
    `turns` is the number of interleaved parts (samples 0, n, 2n ...) that its step divides a batch into: mixup blends
    samples of the same part only.
    `check_network` raises ValueError for a network that `network` did not build; for methods with a `network` of their
    own.
    `whole_batch` says what in its loss is a statistic of the whole batch, so that a batch cannot be divided; empty if
    its losses are means and sums over samples.
    `scheduled` names the terms whose weight changes over a run, `annealed` what else its step changes with progress.
    `tensor_progress`: the objective also takes progress as a tensor, so that one CUDA graph serves all epochs.
    """

    objective: Objective
    network: Callable[[BuildBackbone, BuildBranch], nn.Module] = build_one
    tap: Tap = share
    step: Step | None = None
    phases: tuple[Phase, ...] = (everything,)
    needs_held_out: bool = False
    cohort: Callable[[Sequence[BuildBackbone]], nn.Module] | None = None
    optimizers: tuple[str, ...] = ()
    turns: int = 1
    check_network: Callable[[nn.Module], None] | None = None
    scheduled: tuple[str, ...] = ()
    annealed: tuple[str, ...] = ()
    tensor_progress: bool = False
    whole_batch: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.phases:
            raise ValueError("a method needs at least one phase")

    @property
    def freezes(self) -> bool:
        """Whether parts of the network are frozen in some phase."""
        return self.phases != (everything,)
