"""Gradient equilibrium (Li et al., ICCV 2019, IMTA): joint training; stages get the mean of exits' gradients.

Family: labels. Fits: any network; in networks of several scales (MSDNet) at the coarsest one only, or with scope all at
every scale.
"""

from functools import partial

from offramp.methods._check import choice
from offramp.methods._method import Method
from offramp.methods._taps import Scope
from offramp.methods._taps import equilibrium as tap
from offramp.methods.joint import objective


def build(*, scope: Scope = "coarsest") -> Method:
    """sum_k CE_k as `joint`, each stage receiving the mean of the gradients of the exits behind it.

    The option `tap=equilibrium` does the same with any other method.

    Args:
        scope: in networks of several scales rescale the coarsest one, as the authors' code, or all.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("scope", scope, Scope)
    return Method(objective, tap=partial(tap, scope=scope))
