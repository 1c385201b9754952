"""Dense distillation (NaiveDKD in Wang & Li, AAAI 2021, eq. 4): exits learn from all deeper ones, equally weighted.

Family: mutual. Fits: any network with 2 exits or more.
"""

from typing import Literal

import torch
from torch import nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.kl_table import kl_table, soft_cross_entropy_table
from offramp.methods._check import choice, has_peers, not_negative
from offramp.methods._method import Method, Terms
from offramp.methods._temperature import RISING, Temperature
from offramp.outputs import Batch, ExitOutputs

Imitation = Literal["soft-ce", "kl"]


def build(
    *,
    weight: float | None = None,
    temperature: float = 3.0,
    rising: bool = False,
    rate: float = 1.05,
    limit: float = 0.5,
    detach_teachers: bool = True,
    imitation: Imitation = "soft-ce",
) -> Method:
    """L = sum_k CE_k + lambda T^2 sum_{i>j} H_T(sg z_i -> z_j): teacher i deeper than student j.

    The paper's eq. 2 prints the two roles swapped, with a doubled sign; its text describes what is done here. lambda, T
    and whether teachers are detached are unpublished.

    Args:
        weight: weight lambda of the distillation term; default 1 / (K - 1).
        temperature: temperature T of the distillation; its initial value if rising.
        rising: let T increase during training as in `dbt`.
        rate: factor of one increase of T.
        limit: threshold on the mean of max softmax(z_K / T) over the batch, above which T increases.
        detach_teachers: stop the gradient into the teachers; otherwise later exits are pulled towards earlier ones.
        imitation: distillation loss, soft cross-entropy (soft-ce) or kl; the same gradient while teachers are detached.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("imitation", imitation, Imitation)
    if weight is not None:
        not_negative("weight", weight)
    held = Temperature(start=temperature, rising=rising, rate=rate, limit=limit)
    objective = Dense(weight, held, detach_teachers, imitation)
    return Method(objective, whole_batch=RISING if rising else "")


class Dense(nn.Module):
    """The objective of dense distillation; its temperature is stored with the run."""

    def __init__(
        self, weight: float | None, temperature: Temperature, detach_teachers: bool, imitation: Imitation
    ) -> None:
        super().__init__()
        self.weight, self.detach_teachers, self.imitation = weight, detach_teachers, imitation
        self.table = soft_cross_entropy_table if imitation == "soft-ce" else kl_table
        self.temperature = temperature

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check that there is an exit to learn from."""
        has_peers("dense", exits)
        return ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce` and `soft-ce` or `kl`."""
        exits = len(outputs.logits)
        has_peers("dense", exits)
        weight = 1.0 / (exits - 1) if self.weight is None else self.weight
        temperature = self.temperature(outputs.logits[-1])
        table = self.table(outputs.logits, temperature=temperature, detach_teachers=self.detach_teachers)
        # [student, teacher]: above the diagonal the teacher is the deeper of the two.
        return {
            "ce": cross_entropy(outputs.logits, batch.labels).sum(),
            self.imitation: weight * temperature**2 * torch.triu(table, diagonal=1).sum(),
        }
