"""Impr (IMTA in one stage, a baseline of HDKD): gradient equilibrium, and distillation from the final exit.

Family: final exit. Fits: any network with 2 exits or more; in networks of several scales (MSDNet) as `equilibrium`.
"""

from functools import partial

from torch import nn

from offramp.methods._cascade import Cascaded, linked, sizes
from offramp.methods._check import choice
from offramp.methods._method import Method, contains
from offramp.methods._taps import Scope, equilibrium
from offramp.methods.ofa import OneForAll, Reduction
from offramp.net import BuildBackbone, BuildBranch, MultiExitNet, attach


def build(
    *,
    gamma: float = 0.9,
    temperature: float = 3.0,
    reduction: Reduction = "batch",
    scope: Scope = "coarsest",
    links: bool = False,
) -> Method:
    """L = CE_K + sum_{k<K} [ (1-g) CE_k + g T^2 KL_T(sg z_K -> z_k) ], with the gradients of `equilibrium`.

    HDKD's authors write only that "Impr employs gradient equilibrium and knowledge distillation".

    Args:
        gamma: share g of the distillation term at the early exits; the cross-entropy has 1 - g.
        temperature: temperature T of the distillation.
        reduction: mean of the divergence over the batch, or over batch and classes (elements), as IMTA's code.
        scope: in networks of several scales rescale the coarsest one, as IMTA's code, or all.
        links: each exit also gets the previous exit's logits (IMTA's inline collaboration, as in `imta`).

    Data sets:
        ImageNet: gamma .1, temperature 1

    Raises:
        ValueError: if a value is out of range.
    """
    choice("scope", scope, Scope)
    objective, tap = OneForAll("impr", gamma, temperature, reduction), partial(equilibrium, scope=scope)
    if not links:
        return Method(objective, tap=tap)
    return Method(objective, network=collaborating, tap=tap, check_network=contains(Cascaded))


def collaborating(backbone: BuildBackbone, branch: BuildBranch) -> nn.Module:
    """The backbone with its branches, all but the first linked with the one before."""
    trunk = backbone()
    net = attach(trunk, branch)
    classes, widths = sizes(net, trunk)
    return MultiExitNet(list(net.stages), linked(net.branches, classes, widths[1:]))
