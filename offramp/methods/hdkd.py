"""HDKD (Wang & Li, AAAI 2021): every exit learns from all deeper ones, by weights learned on held-out batches.

Family: learned weights. Fits: any network with 2 exits or more; needs a val split (--holdout).
"""

from pathlib import Path

from offramp.methods._loss_weights import Ahead, Bilevel, Init, Rate, Statistics, method
from offramp.methods._method import Method


def build(
    *,
    init: Init = "ds",
    weights: tuple[float, ...] = (),
    fixed: Path | None = None,
    temperature: float = 3.0,
    detach_teachers: bool = True,
    alpha: float = 0.5,
    decay: float = 0.9,
    step_size: float = 1.0,
    xi: Rate = "initial",
    look_ahead: Ahead = "plain",
    meta_every: int = 1,
    clamp: bool = True,
    renormalise: bool = False,
    val_bn: Statistics = "batch",
) -> Method:
    """L = sum_k w_k CE_k + sum_{i>j} w_ij T^2 H_T(sg z_i -> z_j); before each step w follows the held-out loss.

    Algorithm 1: theta' = theta - xi grad L(theta, w) (eq. 8), w <- w - eps dL_val(theta')/dw with L_val = a sum CE_k +
    (1-a) sum softplus(CE_k / E_k - 1) (eq. 9) and E_k the moving average of CE_k(theta') on held-out batches (eq. 10),
    then the ordinary step with the new w. The paper computes a Hessian-vector product; the same number is one
    forward-mode product. Its loop "for t = 0 ... T" would run T+1 times without moving theta: here one update of w per
    step. eps, xi, T, the first E_k, bounds of w and the mode of batch norms are unpublished. Held-out batches come
    from the val split, as large as the training batches, not augmented. grad L(theta, w) is computed in the run's
    precision, as the step's own gradient is; what follows in the look-ahead in float32.

    Args:
        init: w at the start: labels 1, and each pair 1/(K-j) (ds: an exit learns equally from all later ones), 1
            (ones), 1 for the final teacher and 0 for others (dbt), or all drawn from [0, 1) (random).
        weights: w at the start, instead of init: K of labels, then of pairs (2,1), (3,1), (3,2), (4,1) ...
        fixed: a finished run, whose last weights are taken and stay (the paper's Fixed).
        temperature: T.
        detach_teachers: no gradient into the teachers.
        alpha: a, the share of the plain sum in the held-out loss (the paper's ablation: 0, .1, .5, .9, 1).
        decay: of the moving average E_k.
        step_size: eps, the step of w.
        xi: the step of the look-ahead: the learning rate at the start of the run (initial), or the current one, with
            which w freezes as the rate falls.
        look_ahead: plain gradient descent as in eq. 8, or the optimiser's own momentum and weight decay (own).
        meta_every: w moves in every so many-th step; 0 keeps it as it is.
        clamp: keep w at 0 or above.
        renormalise: keep the sum of w; otherwise it drifts and acts on the learning rate.
        val_bn: batch norms on held-out batches use these batches' statistics (batch) or the running ones, as
            they were before the step (running).

    Raises:
        ValueError: if a value is out of range.
    """
    return method(
        Bilevel(
            name="hdkd",
            teachers="all",
            init=init,
            weights=tuple(weights),
            fixed=fixed,
            temperature=temperature,
            detach_teachers=detach_teachers,
            alpha=alpha,
            decay=decay,
            step_size=step_size,
            xi=xi,
            look_ahead=look_ahead,
            meta_every=meta_every,
            clamp=clamp,
            renormalise=renormalise,
            val_bn=val_bn,
        )
    )
