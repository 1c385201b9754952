"""Taps: what goes into a branch and what flows on keep their values, and their gradients are rescaled."""

from functools import partial
from typing import Literal

from torch import Tensor

from offramp.net import Tap
from offramp.outputs import State

Scope = Literal["coarsest", "all"]
TapName = Literal["method", "equilibrium", "equilibrium-all"]


def equilibrium(state: State, exit: int, exits: int, *, scope: Scope = "coarsest") -> tuple[State, State]:
    """Gradient equilibrium (Li et al., ICCV 2019, IMTA, section 3.1).

    At exit s of K (from 1) the gradient from the branch is multiplied by 1/(K-s+1), and what comes back from the next
    stage by (K-s)/(K-s+1). So every stage receives the mean, not the sum, of the gradients of the exits that it feeds.

    Args:
        scope: of a state of several scales, rescale the coarsest one (the last), as the authors' code, or all.
    """
    left = exits - exit
    return _rescaled(state, 1.0 / left, scope), _rescaled(state, (left - 1.0) / left, scope)


def _rescaled(state: State, weight: float, scope: Scope) -> State:
    if isinstance(state, Tensor):
        return _scaled(state, weight)
    if scope == "all":
        return tuple(_scaled(tensor, weight) for tensor in state)
    return (*state[:-1], _scaled(state[-1], weight))


def _scaled(tensor: Tensor, weight: float) -> Tensor:
    """The same values, `weight` times the gradient; of ordinary operations, so that forward tangents are rescaled too.

    The difference is 0, so that adding it changes no bit.
    """
    still = tensor.detach()
    return still + weight * (tensor - still)


def tap_named(name: TapName, method_tap: Tap) -> Tap:
    """The tap that the option `tap` names; `method_tap` is the method's."""
    taps: dict[str, Tap] = {
        "method": method_tap,
        "equilibrium": equilibrium,
        "equilibrium-all": partial(equilibrium, scope="all"),
    }
    return taps[name]
