"""Neighbour distillation: every exit learns from the labels and from the next deeper exit.

Family: mutual. Fits: any network with 2 exits or more.
"""

from torch import Tensor

import offramp
from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl


def build(*, weight: float = 1.0, temperature: float = 3.0) -> offramp.Method:
    """L = sum_k CE_k + weight T^2 sum_{k<E} KL_T(z_{k+1} -> z_k); no gradient flows into the deeper exit.

    Args:
        weight: weight of the distillation term.
        temperature: T, divides the logits of both exits.

    Raises:
        ValueError: if a value is out of range.
    """
    if weight < 0:
        raise ValueError(f"weight must not be negative, got {weight}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")

    def objective(outputs: offramp.ExitOutputs, batch: offramp.Batch, progress: float) -> dict[str, Tensor]:
        logits = outputs.logits  # (E, B, C)
        if len(logits) < 2:
            raise ValueError("neighbour needs a network with 2 exits or more")
        distillation = kl(logits[:-1], logits[1:], temperature=temperature).sum()
        return {
            "ce": cross_entropy(logits, batch.labels).sum(),
            "kl": weight * temperature**2 * distillation,
        }

    return offramp.Method(objective)
