"""HDBT (Wang & Li, AAAI 2021): DBT with loss weights that are learned on held-out batches, as in HDKD.

Family: learned weights. Fits: any network with 2 exits or more; needs a val split (holdout above 0).
"""

from typing import Any

from offramp.methods._bilevel import method
from offramp.methods._loss_weights import Bilevel, Init
from offramp.methods._method import Method
from offramp.methods._parameters import parameters_of


@parameters_of(Bilevel)
def build(*, init: Init = "dbt", **parameters: Any) -> Method:
    """L = sum_k w_k CE_k + sum_{j<K} w_j T^2 H_T(sg z_K -> z_j): HDKD with the final exit as the only teacher.

    For what is unpublished, see `hdkd`.

    Args:
        init: initial loss weights: labels 1, and each student j 1 (dbt, ones) or 1/(K-j) (ds); or all drawn from [0, 1)
            (random).

    Raises:
        ValueError: if a value is out of range.
    """
    return method(Bilevel(name="hdbt", teachers="final", init=init, **parameters))
