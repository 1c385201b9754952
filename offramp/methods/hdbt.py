"""HDBT (Wang & Li, AAAI 2021): DBT with the weights of all its losses learned on held-out batches, as in HDKD.

Family: learned weights. Fits: any network with 2 exits or more; needs a val split (--holdout).
"""

from pathlib import Path

from offramp.methods._loss_weights import Ahead, Bilevel, Init, Rate, Statistics, method
from offramp.methods._method import Method


def build(
    *,
    init: Init = "dbt",
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
    """L = sum_k w_k CE_k + sum_{j<K} w_j T^2 H_T(sg z_K -> z_j): HDKD with the final exit as the only teacher.

    See `hdkd` for what is published and what is not.

    Args:
        init: w at the start: labels 1, and each pair 1 (dbt, ones), 1/(K-j) (ds), or all from [0, 1) (random).
        weights: w at the start, instead of init: K of labels, then K-1 of students.
        fixed: a finished run of this method, whose last weights are taken and stay.
        temperature: T.
        detach_teachers: no gradient into the final exit as teacher.
        alpha: the share of the plain sum in the held-out loss.
        decay: of the moving average of the held-out losses.
        step_size: the step of w.
        xi: the step of the look-ahead: the learning rate at the start of the run (initial), or the current one.
        look_ahead: plain gradient descent, or the optimiser's own momentum and weight decay (own).
        meta_every: w moves in every so many-th step; 0 keeps it as it is.
        clamp: keep w at 0 or above.
        renormalise: keep the sum of w.
        val_bn: batch norms on held-out batches use these batches' statistics (batch) or the running ones, as
            they were before the step (running).

    Raises:
        ValueError: if a value is out of range.
    """
    return method(
        Bilevel(
            name="hdbt",
            teachers="final",
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
