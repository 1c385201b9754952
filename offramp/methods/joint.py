"""Joint training (BranchyNet 2016, MSDNet 2018): the cross-entropies of all exits, summed with equal weights.

Family: labels. Fits: any network.
"""

from offramp.losses.cross_entropy import cross_entropy
from offramp.methods._method import Method, Terms
from offramp.outputs import Batch, ExitOutputs


def build() -> Method:
    """sum_k CE_k, all weights 1: a sum over exits, not a mean. It has no parameters."""
    return Method(objective)


def objective(outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
    """Cross-entropy of all exits, summed."""
    return {"ce": cross_entropy(outputs.logits, batch.labels).sum()}
