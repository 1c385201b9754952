"""Weights that follow the run or the depth: cosine annealing over epochs, powers over exits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offramp.protocols import Progress


def cosine(begin: float, end: float, progress: Progress) -> Progress:
    """Cosine annealing from `begin` to `end`: end + (1 + cos(pi progress)) / 2 * (begin - end).

    Eq. 6 of MUSE and eq. 8 of MSD print the product inside the bracket, which gives about 0.5 at every epoch: a
    misprint. progress = epoch / epochs, in [0, 1].
    """
    angle = math.pi * progress
    return end + 0.5 * (1.0 + (angle.cos() if isinstance(angle, Tensor) else math.cos(angle))) * (begin - end)


def weighted(weight: Progress, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The product, in the loss's precision."""
    return (weight.to(loss.dtype) if isinstance(weight, Tensor) else weight) * loss


def rising_powers(base: float, logits: Float[Tensor, "E B C"]) -> Float[Tensor, "E"]:
    """base^0, base^1, ... base^(E-1) for the E exits, shallow to deep, with the logits' device and float32 at least."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.pow(base, torch.arange(logits.shape[0], device=logits.device, dtype=dtype))
