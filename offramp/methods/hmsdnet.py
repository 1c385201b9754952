"""HMSDNet (Wang & Li, AAAI 2021): joint training with loss weights of the exits that are learned as in HDKD.

Family: learned weights. Fits: any network; needs a val split (holdout above 0).
"""

from typing import Any, Literal

from offramp.methods._bilevel import method
from offramp.methods._check import choice
from offramp.methods._loss_weights import Bilevel
from offramp.methods._method import Method
from offramp.methods._parameters import parameters_of

Init = Literal["ones", "random"]


@parameters_of(Bilevel, omit=("temperature", "detach_teachers"))
def build(*, init: Init = "ones", **parameters: Any) -> Method:
    """L = sum_k w_k CE_k: HDKD without any teacher. For what is unpublished, see `hdkd`.

    Args:
        init: initial loss weights: 1 for every exit (ones), or drawn from [0, 1) (random).

    Raises:
        ValueError: if a value is out of range.
    """
    choice("init", init, Init)
    return method(Bilevel(name="hmsdnet", teachers="none", init=init, **parameters))
