"""DBT (Phuong & Lampert, ICCV 2019, Distillation-Based Training): exits learn from the labels and the final exit.

Family: final exit. Fits: any network with 2 exits or more.
"""

from typing import Literal

from torch import nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl, soft_cross_entropy
from offramp.methods._check import choice, fraction, has_peers, positive
from offramp.methods._method import Method, Terms
from offramp.methods._temperature import RISING, Temperature
from offramp.outputs import Batch, ExitOutputs

Imitation = Literal["soft-ce", "kl"]


def build(
    *,
    alpha: float = 0.5,
    rising: bool = True,
    temperature: float | None = None,
    rate: float = 1.05,
    limit: float = 0.5,
    scale: float | None = None,
    imitation: Imitation = "soft-ce",
) -> Method:
    """L = s { (1-C) sum_k CE_k + C T^2 sum_{k<K} H_T(sg z_K -> z_k) }, with the form and values of the authors' code.

    The paper calls its temperature annealed; in the code it only rises, as here. Other papers call
    other losses DBT: EED's is `eed` with teachers -1 and final_learns off, the BEED code's is `beed` with mode kd.

    Args:
        alpha: share C of the distillation term; the cross-entropy has 1 - C, at the final exit too.
        rising: multiply T by `rate` after each batch on which the softened final exit's confidence exceeds `limit`.
        temperature: initial temperature T; default 1 if rising, 4 if constant.
        rate: factor of one increase of T.
        limit: threshold on the mean of max softmax(z_K / T) over the batch.
        scale: factor s of the whole loss; default 2 * 5 / K, the size of a sum over five exits.
        imitation: distillation loss, soft cross-entropy (soft-ce) or kl; both have the same gradient, and differ by the
            teacher's entropy.

    Raises:
        ValueError: if a value is out of range.
    """
    fraction("alpha", alpha)
    choice("imitation", imitation, Imitation)
    if scale is not None:
        positive("scale", scale)
    start = (1.0 if rising else 4.0) if temperature is None else temperature
    current = Temperature(start=start, rising=rising, rate=rate, limit=limit)
    return Method(Distil(alpha, current, scale, imitation), whole_batch=RISING if rising else "")


class Distil(nn.Module):
    """The objective of DBT; its temperature is stored with the run."""

    def __init__(self, alpha: float, temperature: Temperature, scale: float | None, imitation: Imitation) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, scale
        self.imitate = soft_cross_entropy if imitation == "soft-ce" else kl
        self.imitation = imitation
        self.temperature = temperature

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check that there is an exit to learn from."""
        has_peers("dbt", exits)
        return ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce` and `soft-ce` or `kl`; in training mode the temperature may rise for the next batch."""
        logits = outputs.logits
        has_peers("dbt", len(logits))
        scale = 10.0 / len(logits) if self.scale is None else self.scale
        temperature = self.temperature(logits[-1])
        imitated = self.imitate(logits[:-1], logits[-1:], temperature=temperature).sum()
        return {
            "ce": scale * (1.0 - self.alpha) * cross_entropy(logits, batch.labels).sum(),
            self.imitation: scale * self.alpha * temperature**2 * imitated,
        }
