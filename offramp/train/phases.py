"""Phases of a run, in which different parts of the network train: which, for how long, at which rate.

`tune=mixed` (backbone first, then everything) is what "How to Train Your Multi-Exit Model? Analyzing the Impact of
Training Strategies" (ICML 2025) recommends; `tune=exits` freezes the backbone.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from offramp.lookup import with_parameters
from offramp.methods._method import Method, Phase, everything
from offramp.methods.vanilla import final_exit
from offramp.net import MultiExitNet, Tap, share
from offramp.outputs import Batch
from offramp.protocols import EarlierExitUser, Objective, Progress, Terms
from offramp.step import StepContext, plain_step
from offramp.train import optim
from offramp.train.recipe import Recipe


class Span(NamedTuple):
    """A phase's epochs: the first of them, and how many."""

    phase: Phase
    first: int
    epochs: int


def spans(recipe: Recipe, method: Method) -> list[Span]:
    """The phases of a run: the method's, changed by the option `tune`.

    Raises:
        ValueError: if they contradict each other, or there are fewer epochs than phases.
    """
    phases = tuned(recipe, method)
    if recipe.epochs < len(phases):
        raise with_parameters(
            ValueError(
                f"this run trains in {len(phases)} phases and needs at least as many epochs, got {recipe.epochs}"
            ),
            "epochs",
        )
    total = sum(phase.share for phase in phases)
    result: list[Span] = []
    first, share = 0, 0.0
    for left, phase in zip(range(len(phases) - 1, -1, -1), phases, strict=True):
        share += phase.share
        last = min(max(round(recipe.epochs * share / total), first + 1), recipe.epochs - left)
        result.append(Span(phase, first, last - first))
        first = last
    return result


def tuned(recipe: Recipe, method: Method) -> tuple[Phase, ...]:
    """The method's phases, changed by the option `tune`.

    `mixed` trains the backbone alone before them, for half of the epochs. `exits` omits phases that train the backbone
    alone.

    Raises:
        ValueError: if `tune` is `exits` and a phase of the method also trains the backbone.
    """
    phases = method.phases
    if recipe.tune == "mixed":
        total = 2 * sum(phase.share for phase in phases)
        first = Phase("backbone", 0.5, objective=final_exit)
        return (first, *(replace(phase, share=phase.share / total) for phase in phases))
    if recipe.tune == "all":
        return phases
    if phases == (everything,):
        return (Phase("exits"),)
    if any(phase.trains == "all" for phase in phases):
        raise with_parameters(
            ValueError(
                "tune=exits leaves the backbone as it is, but this method trains backbone and exits together in a "
                "phase of its own; take tune=all or mixed"
            ),
            "tune",
        )
    return tuple(phase for phase in phases if phase.trains != "backbone")


def notes(recipe: Recipe, method: Method) -> tuple[str, ...]:
    """A note for the user if a randomly initialised backbone is never trained."""
    if any(phase.trains != "exits" for phase in tuned(recipe, method)):
        return ()
    return ("the backbone stays as it starts, which is at random: the option weights brings a trained one",)


def refuse_net(recipe: Recipe, method: Method, net: nn.Module) -> None:
    """Refuse a network that cannot be divided into backbone and exits as `tune` and the method's phases require.

    Raises:
        ValueError: naming the option, if several networks are trained; if a phase trains nothing; or if a frozen final
            exit depends on earlier exits.
    """
    if isinstance(net, MultiExitNet):
        for phase in tuned(recipe, method):
            _modules(net, phase)
        if recipe.tune == "exits" and any(part.depends_on_earlier_exits for part in _earlier_exit_users(net)):
            raise with_parameters(
                ValueError(
                    "tune=exits freezes the final exit, but with this method its result depends on the exits before "
                    "it; take tune=all or mixed"
                ),
                "tune",
            )
        return
    for option, is_set in (("tune", recipe.tune != "all"), ("lr_backbone", recipe.lr_backbone is not None)):
        if is_set:
            raise with_parameters(
                ValueError(
                    f"{option} tells a backbone from its exits, but this method trains networks side by side: leave it "
                    "out"
                ),
                option,
            )


def span_at(phase_spans: list[Span], epoch: int) -> Span:
    """The phase of an epoch."""
    return next(span for span in reversed(phase_spans) if span.first <= epoch)


def progress(span: Span, epoch: int) -> float:
    """The share of a phase that is done at the start of an epoch of the run, in [0, 1)."""
    return (epoch - span.first) / span.epochs


def rate(recipe: Recipe, span: Span, epoch: int, step: int, steps: int) -> float:
    """The learning rate; every phase runs through the whole schedule.

    Args:
        epoch: of the run, from 0.
        step: optimizer steps taken since the run began.
        steps: optimizer steps per epoch.
    """
    done = (step - span.first * steps) / (span.epochs * steps)
    return span.phase.rate * optim.rate(recipe, epoch - span.first, done, span.epochs)


def enter(net: nn.Module, phase: Phase, trained: Collection[nn.Parameter]) -> None:
    """Freeze what a phase does not train: no gradients, and evaluation mode, so that batch norms keep their statistics.

    Everything else is in training mode afterwards. The backbone is all stages and the final exit.

    Args:
        trained: the parameters in the optimizer; others are frozen in every phase.
    Raises:
        ValueError: if nothing would train.
    """
    net.train()
    trainable = set(map(id, trained))
    for part in (part for part in net.modules() if isinstance(part, MultiExitNet)):
        chosen = _modules(part, phase)
        for child in part.children():
            child.train(not phase.still)
        part.requires_grad_(False)
        for module in chosen:
            module.train()
            for parameter in module.parameters():
                parameter.requires_grad_(id(parameter) in trainable)


def start_epoch(net: nn.Module, objective: Objective, phase: Phase, trained: Collection[nn.Parameter]) -> None:
    """Put network and objective into training mode, except for what the phase does not train.

    Args:
        trained: the network's parameters in the optimizer.
    """
    enter(net, phase, trained)
    set_earlier_exit_use(net, phase)
    if isinstance(objective, nn.Module):
        objective.train()


def take_step(method: Method, phase: Phase, context: StepContext, batch: Batch, progress: Progress) -> Terms:
    """One step with the objective and step of the phase if it has them, else those of the method."""
    phase_objective = phase.objective
    step = phase.step or (method.step if phase_objective is None else None) or plain_step
    objective = context.objective if phase_objective is None else phase_objective
    compiled = context.compiled if phase_objective is None else None
    return step(replace(context, objective=objective, compiled=compiled, tap=tap(phase, context.tap)), batch, progress)


def set_earlier_exit_use(net: nn.Module, phase: Phase) -> None:
    """Let final exits use the exits before them (if the method does that), except while only the backbone trains."""
    for part in (part for part in net.modules() if isinstance(part, MultiExitNet)):
        for user in _earlier_exit_users(part):
            user.ignores_earlier_exits = phase.trains == "backbone"


def _earlier_exit_users(net: MultiExitNet) -> list[EarlierExitUser]:
    """The parts of the final exit that may depend on earlier exits and can be set to ignore them."""
    return [part for part in net.branches[-1].modules() if isinstance(part, EarlierExitUser)]


def tap(phase: Phase, method_tap: Tap) -> Tap:
    """How gradients of the exits are combined; while the backbone trains alone, only the final exit has any."""
    return share if phase.trains == "backbone" else method_tap


def _modules(net: MultiExitNet, phase: Phase) -> list[nn.Module]:
    """The modules of a network that a phase trains.

    Raises:
        ValueError: if there are none.
    """
    parts: dict[str, Iterable[nn.Module]] = {
        "all": net.children(),
        "backbone": (net.stages, net.branches[-1]),
        "exits": net.branches[:-1],
    }
    chosen = list(parts[phase.trains] if phase.modules is None else phase.modules(net))
    if not chosen:
        raise ValueError("only exits are to be trained, but the network has no early exits")
    return chosen


def of_backbone(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of all stages and final exits."""
    nets = [part for part in net.modules() if isinstance(part, MultiExitNet)]
    return [p for part in nets for module in (part.stages, part.branches[-1]) for p in module.parameters()]
