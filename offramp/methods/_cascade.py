"""Exits that use the logits of the previous exit: ZTW's cascade, and IMTA's inline collaboration (ISC)."""

import math
from collections.abc import Iterable
from itertools import zip_longest

import torch
from torch import Tensor, nn

from offramp.meta_device import blank, run_on_meta
from offramp.net import Backbone, MultiExitNet
from offramp.outputs import Carry, State


class Cascaded(nn.Module):
    """A branch whose classifier also uses the previous exit's logits; passes its own on.

    A linear layer on [F_k ; r] is a linear layer on F_k plus one without bias on r: the branch keeps the first, `link`
    is the second and whatever makes r of the logits, so that any branch can be cascaded.

    Args:
        branch: (state, carry) -> (logits, feature, map, carry).
        link: previous logits (B, C) -> what is added to the logits (B, C); None for an exit that uses none.
        detach: stop the gradient into the previous exit.
        on: whether the link is active from the start; otherwise from `switch_on` on, and it is not trained before.

    While `ignores_earlier_exits` is set it returns what its branch returns, whatever its link is.
    """

    chained_exit = True
    ignores_earlier_exits = False
    on: Tensor

    def __init__(self, branch: nn.Module, link: nn.Module | None, *, detach: bool = True, on: bool = True) -> None:
        super().__init__()
        self.branch, self.link, self.detach = branch, link, detach
        self.register_buffer("on", torch.tensor(on))

    @property
    def depends_on_earlier_exits(self) -> bool:
        """Whether its result depends on the exit before it."""
        return self.link is not None

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """(state, carry) -> (logits (B, C), feature, map, carry); the carry begins with these logits."""
        logits, feature, before_pooling, branch_carry = self.branch(state, carry[1:])
        if self.link is not None and not self.ignores_earlier_exits:
            earlier = carry[0].detach() if self.detach else carry[0]
            logits = logits + self.link(earlier) * self.on
        return logits, feature, before_pooling, (logits, *branch_carry)


class Concatenated(nn.Module):
    """The previous logits as they are, or through a layer norm: ZTW's heads."""

    def __init__(self, classes: int, width: int, *, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(classes) if norm else nn.Identity()
        self.classifier = nn.Linear(classes, classes, bias=False)
        bound = 1 / math.sqrt(width + classes)  # the start of one linear layer on feature and logits
        nn.init.uniform_(self.classifier.weight, -bound, bound)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        added: Tensor = self.classifier(self.norm(logits))
        return added


class Collaborating(nn.Module):
    """The previous logits through linear layer, batch norm and ReLU to the width of the feature: IMTA's ISC.

    The last layer starts at 0: the exit's logits do not change when the link is switched on.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(classes, width), nn.BatchNorm1d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes, bias=False)
        nn.init.zeros_(self.classifier.weight)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        added: Tensor = self.classifier(self.body(logits))
        return added


def sizes(net: MultiExitNet, backbone: Backbone) -> tuple[int, list[int]]:
    """Classes C and the feature width D of every exit, for inputs of the shape that the backbone is made for."""
    outputs = run_on_meta(net, blank(net, backbone.shape))
    return outputs.logits.shape[-1], [feature.shape[1] for feature in outputs.features]


def cascaded(
    branches: Iterable[nn.Module], links: Iterable[nn.Module], *, detach: bool = True, on: bool = True
) -> list[nn.Module]:
    """Each branch as a `Cascaded` one, all but the first with a link, as long as there are links; then as they are."""
    first, *rest = branches
    result: list[nn.Module] = [Cascaded(first, None)]
    result += [
        branch if link is None else Cascaded(branch, link, detach=detach, on=on)
        for branch, link in zip_longest(rest, links)
    ]
    return result


def linked(
    branches: Iterable[nn.Module], classes: int, widths: Iterable[int], *, detach: bool = True, on: bool = True
) -> list[nn.Module]:
    """The branches with inline collaboration; `widths` are those of all branches from the second on."""
    return cascaded(branches, [Collaborating(classes, width) for width in widths], detach=detach, on=on)


def switch_on(net: nn.Module) -> None:
    """Activate all links of a network."""
    for part in net.modules():
        if isinstance(part, Cascaded):
            part.on.fill_(True)
