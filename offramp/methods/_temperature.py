"""The temperature of Phuong & Lampert 2019: constant, or rising whenever the softened final exit grows too sure."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.distributed import global_mean
from offramp.losses.softmax import confidence
from offramp.methods._check import fraction, positive

RISING = "its temperature rises by the confidence of every batch"
"""Why a method with a rising temperature cannot divide a batch."""


class Temperature(nn.Module):
    """T = start * rate^rises; after each training batch whose mean confidence exceeds `limit`, rises grows by one.

    The count is what is stored: it is exact, whatever the precision, and a resumed run continues from it.

    Args:
        start: T at the beginning, and for ever if `rising` is off.
        rising: whether it rises.
        rate: factor of one rise, at least 1.
        limit: mean over the batch of max softmax(z_final / T) above which T rises.

    Raises:
        ValueError: if a value is out of range.
    """

    rises: Tensor

    def __init__(self, *, start: float, rising: bool, rate: float = 1.05, limit: float = 0.5) -> None:
        super().__init__()
        positive("temperature", start)
        fraction("limit", limit)
        if not 1.0 <= rate < math.inf:
            raise ValueError(f"rate must be at least 1 (the temperature only rises) and finite, got {rate}")
        self.start, self.rising, self.rate, self.limit = start, rising, rate, limit
        self.register_buffer("rises", torch.zeros((), dtype=torch.int64))

    def value(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, ""]:
        """T as a tensor on the device of the run, so that reading it makes no GPU wait."""
        return self.start * torch.pow(self.rate, self.rises.to(dtype))

    def forward(self, final: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
        """T for this batch; in training mode the final exit's logits then decide whether it rises for the next."""
        temperature = self.value(torch.float64 if final.dtype == torch.float64 else torch.float32)
        if self.rising and self.training:
            sure = global_mean(confidence(final.detach(), temperature).mean())
            self.rises += sure > self.limit
        return temperature
