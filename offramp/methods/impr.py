"""Impr (IMTA in one stage, as HDKD compares with): gradient equilibrium and imitation of the final exit together.

Family: final exit. Fits: any network with 2 exits or more; of several scales (MSDNet) as equilibrium.
"""

from functools import partial

from offramp.methods._check import choice
from offramp.methods._method import Method
from offramp.methods._taps import Scope, equilibrium
from offramp.methods.ofa import OneForAll, Reduction


def build(
    *,
    gamma: float = 0.9,
    temperature: float = 3.0,
    reduction: Reduction = "batch",
    scope: Scope = "coarsest",
) -> Method:
    """L = CE_K + sum_{k<K} [ (1-g) CE_k + g T^2 KL_T(sg z_K -> z_k) ], with the gradients of `equilibrium`.

    HDKD's authors write only that "Impr employs gradient equilibrium and knowledge distillation".

    Args:
        gamma: g, the share of imitation at the early exits.
        temperature: T.
        reduction: mean of the divergence over the batch, or over batch and classes (elements), as IMTA's code.
        scope: in networks of several scales rescale the coarsest one, as IMTA's code, or all.

    Data sets:
        ImageNet: gamma .1, temperature 1

    Raises:
        ValueError: if a value is out of range.
    """
    choice("scope", scope, Scope)
    return Method(OneForAll("impr", gamma, temperature, reduction), tap=partial(equilibrium, scope=scope))
