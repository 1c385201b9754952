"""HMSDNet (Wang & Li, AAAI 2021): joint training with the exits' weights learned on held-out batches, as in HDKD.

Family: learned weights. Fits: any network; needs a val split (--holdout).
"""

from pathlib import Path
from typing import Literal

from offramp.methods._check import choice
from offramp.methods._loss_weights import Ahead, Bilevel, Rate, Statistics, method
from offramp.methods._method import Method

Init = Literal["ones", "random"]


def build(
    *,
    init: Init = "ones",
    weights: tuple[float, ...] = (),
    fixed: Path | None = None,
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
    """L = sum_k w_k CE_k: HDKD without any teacher. See `hdkd` for what is published and what is not.

    Args:
        init: w at the start: 1 for every exit (ones), or drawn from [0, 1) (random).
        weights: w at the start, instead of init: one for each exit.
        fixed: a finished run of this method, whose last weights are taken and stay.
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
    choice("init", init, Init)
    return method(
        Bilevel(
            name="hmsdnet",
            teachers="none",
            init=init,
            weights=tuple(weights),
            fixed=fixed,
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
