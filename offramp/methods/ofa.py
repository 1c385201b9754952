"""One for all (OFA; Li et al., ICCV 2019, IMTA): early exits learn from the final one's softened output and the labels.

Family: final exit. Fits: any network with 2 exits or more.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl
from offramp.methods._check import choice, fraction, has_peers, positive
from offramp.methods._method import Method, Terms
from offramp.outputs import Batch, ExitOutputs

Reduction = Literal["batch", "elements"]


def build(*, gamma: float = 0.9, temperature: float = 3.0, reduction: Reduction = "batch") -> Method:
    """L = CE_K + sum_{k<K} [ (1-g) CE_k + g T^2 KL_T(sg z_K -> z_k) ].

    In IMTA this is the second stage, whose teacher is the frozen network of the first (`imta`); here the final exit
    teaches while it learns. `impr` adds gradient equilibrium.

    Args:
        gamma: share g of the distillation term at the early exits; the cross-entropy has 1 - g.
        temperature: temperature T of the distillation.
        reduction: mean of the divergence over the batch, or over batch and classes (elements), which is what the
            authors' code computes: as many times smaller as there are classes.

    Data sets:
        ImageNet: gamma .1, temperature 1

    Raises:
        ValueError: if a value is out of range.
    """
    return Method(OneForAll("ofa", gamma, temperature, reduction))


class OneForAll(nn.Module):
    """The objective of OFA; it owns nothing that is learned."""

    def __init__(self, name: str, gamma: float, temperature: float, reduction: Reduction) -> None:
        super().__init__()
        fraction("gamma", gamma)
        positive("temperature", temperature)
        choice("reduction", reduction, Reduction)
        self.name, self.gamma, self.temperature, self.reduction = name, gamma, temperature, reduction

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check that there is an exit to learn from."""
        has_peers(self.name, exits)
        return ()

    def forward(
        self, outputs: ExitOutputs, batch: Batch, progress: float, teacher: Float[Tensor, "1 B C"] | None = None
    ) -> Terms:
        """Terms `ce` and `kl`; the final exit teaches if there is no other teacher."""
        logits = outputs.logits
        taught = logits[-1:] if teacher is None else teacher
        has_peers(self.name, len(logits))
        ce = cross_entropy(logits, batch.labels)
        factor = self.gamma * self.temperature**2 / (logits.shape[-1] if self.reduction == "elements" else 1)
        return {
            "ce": ce[-1] + (1.0 - self.gamma) * ce[:-1].sum(),
            "kl": factor * kl(logits[:-1], taught, temperature=self.temperature).sum(),
        }
