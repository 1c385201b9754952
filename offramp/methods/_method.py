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
    """A part of a run: which modules are trained, for which share of the epochs, at which learning rate.

    Every phase goes through the whole learning rate schedule; momentum and the moving average of the weights start
    again. Modules that are not trained get no gradients, and their batch statistics are kept.

    Attributes:
        trains: `all`, `backbone` (the stages and the final exit) or `exits` (all others).
        share: share of the epochs, in proportion to those of the other phases.
        rate: factor of the recipe's learning rate.
        modules: returns the modules of a network that are trained, if they are only a part of `trains`.
        objective: the objective of this phase; default: that of the method. It must not have learned parameters.
        step: its optimizer step; default: that of the method, or a plain step if the phase has its own objective.
        begin: called with the network before the first step; it must change values in place, without random numbers.
        still: modules that are not trained are in evaluation mode; if False, their batch norms update their statistics.
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
    """A training method: what `build(**parameters)` in each file of this package returns.

    Attributes:
        objective: (outputs, batch, progress) -> weighted losses by name; their sum is minimised.
        network: builds the network from functions that build a backbone and a branch.
        tap: how gradients of exits are combined in the backbone.
        step: the optimizer step; None: a plain one.
        phases: the parts of a run, in order.
        needs_held_out: the step uses held-out batches, so a run without a val split is refused.
        cohort: builds several networks of different kinds, for `net=a,b`; None if they must be of one kind.
        optimizers: names of the optimizers that the step works with; empty: any.
        turns: number of interleaved parts (samples 0, n, 2n ...) that the step divides a batch into; mixup blends only
            samples of the same part.
        check_network: raises ValueError for a network that `network` did not build; for methods with a `network`.
        scheduled: names of the terms whose weight changes over a run.
        annealed: what else the step changes with progress.
        tensor_progress: the objective also takes progress as a tensor, so that one CUDA graph serves all epochs.
        whole_batch: the statistic of the whole batch in the loss, because of which a batch cannot be divided; empty if
            all losses are means or sums over samples.
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
