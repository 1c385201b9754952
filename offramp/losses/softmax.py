"""The one place that says how logits become probabilities: a softmax over the last dimension, in float32 at least."""

import torch
from jaxtyping import Float
from torch import Tensor


def exact(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The tensor in float32 if it is in half precision; float32 and float64 are not changed."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def log_probabilities(
    logits: Float[Tensor, "*shape C"], temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*shape C"]:
    """Logarithms of softmax(logits / temperature) over the classes."""
    logits = exact(logits)
    scaled = logits if isinstance(temperature, float) and temperature == 1.0 else logits / temperature
    return torch.log_softmax(scaled, -1)


def confidence(
    logits: Float[Tensor, "*shape C"], temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*shape"]:
    """The largest probability of each sample, in (0, 1]."""
    return log_probabilities(logits, temperature).amax(-1).exp()
