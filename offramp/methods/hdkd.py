"""HDKD (Wang & Li, AAAI 2021): exits learn from all deeper ones; loss weights are learned on held-out data.

Family: learned weights. Fits: any network with 2 exits or more; needs a val split (holdout above 0).
"""

from typing import Any

from offramp.methods._bilevel import method
from offramp.methods._loss_weights import Bilevel, Init
from offramp.methods._method import Method
from offramp.methods._parameters import parameters_of


@parameters_of(Bilevel)
def build(*, init: Init = "ds", **parameters: Any) -> Method:
    """L = sum_k w_k CE_k + sum_{i>j} w_ij T^2 H_T(sg z_i -> z_j); w is updated on held-out batches before each step.

    Algorithm 1: theta' = theta - xi grad L(theta, w) (eq. 8), w <- w - eps dL_val(theta')/dw with L_val = a sum CE_k +
    (1-a) sum softplus(CE_k / E_k - 1) (eq. 10) and E_k the moving average of CE_k(theta') on held-out batches (eq. 9),
    then the ordinary step with the new w. The paper computes a Hessian-vector product; here the same number is computed
    by one forward-mode product. Its loop "for t = 0 ... T" would run T+1 times without updating theta: here one update
    of w per step. eps, xi, T, the first E_k, bounds of w and the mode of batch norms are unpublished. Held-out batches
    come from the val split, are as large as the training batches, and are not augmented. grad L(theta, w) is computed
    in the precision of the run, as the gradient of the step itself; the rest of the look-ahead in float32.

    Args:
        init: initial loss weights: labels 1, and each pair (teacher i, student j) 1/(K-j), so that an exit learns
            equally from all later ones (ds), 1 (ones), or 1 for the final teacher and 0 for others (dbt); or all drawn
            from [0, 1) (random).

    Raises:
        ValueError: if a value is out of range.
    """
    return method(Bilevel(name="hdkd", teachers="all", init=init, **parameters))
