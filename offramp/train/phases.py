"""Parts of a run in which different parts of the network train: which, for how long, at which rate.

`--tune mixed` (backbone first, then everything) is what "How to Train Your Multi-Exit Model? Analyzing the Impact of
Training Strategies" (ICML 2025) recommends; `--tune exits` leaves the backbone exactly as it is.
"""

from collections.abc import Collection
from typing import NamedTuple

from torch import nn

from offramp.losses.truth import cross_entropy
from offramp.methods._method import Method, Phase, Terms, everything
from offramp.net import MultiExitNet
from offramp.outputs import Batch, ExitOutputs
from offramp.train import optim
from offramp.train.recipe import Recipe

TUNE = {
    "all": (everything,),
    "exits": (Phase("exits"),),
    "mixed": (Phase("backbone", 0.5), Phase("all", 0.5)),
}


class Span(NamedTuple):
    """A phase's epochs: the first of them, and how many."""

    phase: Phase
    first: int
    epochs: int


def spans(recipe: Recipe, method: Method) -> list[Span]:
    """The phases of a run: the method's, or those of `--tune`.

    Raises:
        ValueError: if both want phases, or there are fewer epochs than phases.
    """
    if recipe.tune != "all" and method.phases != (everything,):
        raise ValueError(f"--tune {recipe.tune}: this method trains in phases of its own; take --tune all")
    phases = TUNE[recipe.tune] if recipe.tune != "all" else method.phases
    if recipe.epochs < len(phases):
        raise ValueError(f"this run trains in {len(phases)} phases and needs --epochs of as many, got {recipe.epochs}")
    total = sum(phase.share for phase in phases)
    made: list[Span] = []
    first, share = 0, 0.0
    for left, phase in zip(range(len(phases) - 1, -1, -1), phases, strict=True):
        share += phase.share
        last = min(max(round(recipe.epochs * share / total), first + 1), recipe.epochs - left)
        made.append(Span(phase, first, last - first))
        first = last
    return made


def refuse_several(recipe: Recipe, net: nn.Module) -> None:
    """Refuse what divides a network into backbone and exits, where several are trained side by side.

    Raises:
        ValueError: naming the option.
    """
    if isinstance(net, MultiExitNet):
        return
    for option, given in (("--tune", recipe.tune != "all"), ("--lr-backbone", recipe.lr_backbone is not None)):
        if given:
            raise ValueError(
                f"{option} tells a backbone from its exits, but this method trains networks side by side: leave it out"
            )


def span_at(found: list[Span], epoch: int) -> Span:
    """The phase of an epoch."""
    return next(span for span in reversed(found) if span.first <= epoch)


def rate(recipe: Recipe, span: Span, epoch: int, step: int, steps: int) -> float:
    """The learning rate; every phase runs through the whole schedule.

    Args:
        epoch: of the run, from 0.
        step: optimiser steps taken since the run began; `steps` are an epoch's.
    """
    done = (step - span.first * steps) / (span.epochs * steps)
    return span.phase.rate * optim.rate(recipe, epoch - span.first, done, span.epochs)


def enter(net: nn.Module, phase: Phase, trained: Collection[nn.Parameter]) -> None:
    """Freeze what a phase does not train: no gradients, and evaluation mode, so that batch norms keep their statistics.

    Everything else is in training mode afterwards. The backbone is all stages and the final exit.

    Args:
        trained: the parameters that the optimiser has; others stay frozen in every phase.
    Raises:
        ValueError: if nothing would train.
    """
    net.train()
    own = set(map(id, trained))
    for part in (part for part in net.modules() if isinstance(part, MultiExitNet)):
        backbone, exits = [part.stages, part.branches[-1]], list(part.branches[:-1])
        if phase.trains == "exits" and not exits:
            raise ValueError("only exits are to be trained, but the network has no early exits")
        for modules, trains in ((backbone, phase.trains != "exits"), (exits, phase.trains != "backbone")):
            for module in modules:
                module.train(trains)
                for parameter in module.parameters():
                    parameter.requires_grad_(trains and id(parameter) in own)


def of_backbone(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of all stages and final exits."""
    nets = [part for part in net.modules() if isinstance(part, MultiExitNet)]
    return [p for part in nets for module in (part.stages, part.branches[-1]) for p in module.parameters()]


def final_exit(outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
    """What trains the backbone alone: cross-entropy of the final exit."""
    return {"final": cross_entropy(outputs.logits[-1:], batch.labels).sum()}
