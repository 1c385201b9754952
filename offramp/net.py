"""Networks with exits: a backbone cut into stages, the branches behind them, and the segments that run one by one."""

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from offramp.argument_types import check_arguments
from offramp.meta_device import remembering
from offramp.outputs import Carry, ExitOutputs, State
from offramp.protocols import Reconstructible, is_chained

Tap = Callable[[State, int, int], tuple[State, State]]
"""(state, exit, exits) -> (what enters the branch, what flows on): the same values, gradients reshaped."""

BuildBackbone = Callable[[], "Backbone"]
BuildBranch = Callable[["Backbone", int], nn.Module | None]


class Backbone(NamedTuple):
    """A network divided into the stages behind which exits can be attached.

    `stages[i]` is a Sequential of blocks; the first stage takes the inputs. `head` is the `Head` of the final exit,
    which takes the output of the last stage. Branches can copy blocks from here (see `fresh`). `shape` is the
    (channels, height, width) of the inputs that the network was built for.
    """

    stages: tuple[nn.Sequential, ...]
    head: nn.Module
    shape: tuple[int, int, int]


class Head(nn.Module):
    """Norm, global average pooling and classifier: the end of every exit.

    Takes a map (B, D, H, W) or tokens (B, T, D), or the coarsest (last) of several scales; returns (logits (B, C),
    feature (B, D), map).
    `norm` is applied before pooling (the BN+ReLU that closes a pre-activation network; identity elsewhere), and the map
    that is returned is the one after it.
    """

    def __init__(self, width: int, classes: int, norm: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.norm = norm() if norm else nn.Identity()
        self.classifier = nn.Linear(width, classes)
        self.construct_fresh = partial(Head, width, classes, norm)

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs for a batch of maps."""
        features = self.norm(state[-1] if isinstance(state, tuple) else state)
        pooled = features.mean((2, 3)) if features.dim() == 4 else features.mean(1)
        return self.classifier(pooled), pooled, features


class Branch(nn.Module):
    """An exit: blocks, then a head. `chained_exit` is true if later exits need its carry."""

    chained_exit = False

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """(state, carry) -> (logits (B, C), feature (B, D), map, carry)."""
        logits, feature, features = self.head(self.body(state))
        return logits, feature, features, carry


def share(state: State, exit: int, exits: int) -> tuple[State, State]:
    """The tap that changes nothing: the branch and the next stage get the same state and full gradients."""
    return state, state


class MultiExitNet(nn.Module):
    """Stages in a chain with a branch behind each; the last branch is the backbone's own head.

    Args:
        stages: E modules, State -> State; the first takes the inputs (B, channels, H, W).
        branches: E modules, (state, carry) -> (logits, feature, map, carry).
    Raises:
        ValueError: if there are not as many branches as stages, or none at all.
    """

    def __init__(self, stages: Sequence[nn.Module], branches: Sequence[nn.Module]) -> None:
        super().__init__()
        if not stages or len(stages) != len(branches):
            raise ValueError(
                f"a network needs one branch per stage, got {len(stages)} stages and {len(branches)} branches"
            )
        self.stages = nn.ModuleList(stages)
        self.branches = nn.ModuleList(branches)

    @property
    def exits(self) -> int:
        """E, the number of exits, the final one included."""
        return len(self.branches)

    def forward(self, inputs: State, tap: Tap = share) -> ExitOutputs:
        """Outputs of every exit for inputs (B, channels, H, W), shallow to deep."""
        state, carry = inputs, ()
        logits, features, maps = [], [], []
        for exit, (stage, branch) in enumerate(zip(self.stages, self.branches, strict=True)):
            entering, state = tap(stage(state), exit, self.exits)
            z, feature, features_before_pooling, carry = branch(entering, carry)
            logits.append(z)
            features.append(feature)
            maps.append(features_before_pooling)
        return ExitOutputs(torch.stack(logits), tuple(features), tuple(maps))


@check_arguments
def attach(backbone: Backbone, branch: BuildBranch) -> MultiExitNet:
    """Put `branch(backbone, exit)` behind every stage but the last, and the backbone's head behind that.

    If `branch` returns None, there is no exit behind that stage, and it is merged with the next one.
    """
    stages: list[nn.Module] = []
    branches: list[nn.Module] = []
    pending: list[nn.Module] = []
    with remembering():
        for exit, stage in enumerate(backbone.stages):
            pending.extend(stage)
            last = exit == len(backbone.stages) - 1
            exit_branch = Branch(nn.Identity(), backbone.head) if last else branch(backbone, exit)
            if exit_branch is not None:
                stages.append(nn.Sequential(*pending))
                branches.append(exit_branch)
                pending = []
    return MultiExitNet(stages, branches)


def only_behind(stages: Collection[int], branch: BuildBranch) -> BuildBranch:
    """The same exits, but only behind these stages, numbered from 1; elsewhere there is none.

    Raises:
        ValueError: when a branch is built, if a number names the last stage or none.
    """

    def build(backbone: Backbone, exit: int) -> nn.Module | None:
        last = len(backbone.stages) - 1
        wrong = [number for number in stages if not 1 <= number <= last]
        if wrong:
            raise ValueError(f"exits_at must name stages from 1 to {last} of this network, got {wrong[0]}")
        return branch(backbone, exit) if exit + 1 in stages else None

    return build


@check_arguments
def plain(backbone: Backbone) -> MultiExitNet:
    """The plain network of a backbone, without early exits: one stage, one exit."""
    return attach(backbone, lambda backbone, exit: None)


@runtime_checkable
class _Resettable(Protocol):
    """PyTorch's own convention for a layer that can draw its parameters again."""

    def reset_parameters(self) -> None: ...


def fresh(module: nn.Module) -> nn.Module:
    """A newly initialised module of the same architecture, which shares nothing with the given one.

    A module with `construct_fresh` (its class and arguments bound) is constructed again. Another one is copied and
    all its submodules' `reset_parameters` are called.

    Raises:
        TypeError: if a parameter belongs to a module that can be neither constructed again nor reset.
    """
    if isinstance(module, Reconstructible):
        return module.construct_fresh()
    twin = copy.deepcopy(module)
    for name, part in twin.named_modules():
        if isinstance(part, _Resettable):
            part.reset_parameters()
        elif list(part.parameters(recurse=False)):
            raise TypeError(
                f"cannot make a fresh copy of {type(module).__name__}: {name or 'it'} ({type(part).__name__}) holds "
                "parameters of its own and has neither `construct_fresh` nor `reset_parameters`"
            )
    return twin


class FusedSegment(nn.Module):
    """Stages up to an enabled exit and its branch, as one module: (state, carry) -> (state, carry, logits).

    Branches of exits that are switched off are absent, except chained ones, whose carry later exits need.
    """

    def __init__(self, stages: Sequence[nn.Module], links: Sequence[nn.Module | None], branch: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.links = nn.ModuleList([nn.Identity() if link is None else link for link in links])
        self.chained = tuple(link is not None for link in links)
        self.branch = branch
        self.training = branch.training  # as what it is made of: exporters warn of a module in training mode

    def forward(self, state: State, carry: Carry = ()) -> tuple[State, Carry, Tensor]:
        """Run the stages and the branch: the new state, the carry, and logits (B, C)."""
        for stage, link, chained in zip(self.stages, self.links, self.chained, strict=True):
            state = stage(state)
            if chained:
                carry = link(state, carry)[3]
        logits, _, _, carry = self.branch(state, carry)
        return state, carry, logits


@check_arguments
def segments(net: MultiExitNet, enabled: Sequence[bool] | None = None) -> list[FusedSegment]:
    """One segment per enabled exit, in order; modules are shared with the network, no weight is copied.

    Args:
        enabled: E flags; the final exit must be enabled. Default: all.
    Raises:
        ValueError: if there is not one flag per exit, or the final exit is disabled.
    """
    enabled = [True] * net.exits if enabled is None else list(enabled)
    if len(enabled) != net.exits or not enabled[-1]:
        raise ValueError(f"`enabled` must hold {net.exits} flags with the last one true, got {enabled}")
    result: list[FusedSegment] = []
    stages: list[nn.Module] = []
    links: list[nn.Module | None] = []
    for stage, branch, on in zip(net.stages, net.branches, enabled, strict=True):
        stages.append(stage)
        links.append(None if on or not is_chained(branch) else branch)
        if on:
            result.append(FusedSegment(stages, links, branch))
            stages, links = [], []
    return result
