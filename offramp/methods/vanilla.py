"""Vanilla: the network without early exits, trained by cross-entropy; what all others are compared with.

Family: labels. Fits: any network; no early exits are built.
"""

from torch import nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.methods._method import Method, Terms
from offramp.net import BuildBackbone, BuildBranch, MultiExitNet, plain
from offramp.outputs import Batch, ExitOutputs


def build() -> Method:
    """CE_K of a network WITHOUT exits. It has no parameters."""
    return Method(objective, network=without_exits, check_network=one_exit)


def without_exits(backbone: BuildBackbone, branch: BuildBranch) -> nn.Module:
    """The backbone alone, one stage and one exit; the branches are never built."""
    return plain(backbone())


def one_exit(net: nn.Module) -> None:
    """Raise ValueError if the network has early exits."""
    if not isinstance(net, MultiExitNet) or net.exits > 1:
        raise ValueError("vanilla trains a network without early exits: build it by method.network(backbone, branch)")


def objective(outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
    """Cross-entropy of the final exit."""
    return {"ce": cross_entropy(outputs.logits[-1:], batch.labels).sum()}


def final_exit(outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
    """The same by the name `final`, for the phases of other methods in which the backbone trains alone."""
    return {"final": objective(outputs, batch, progress)["ce"]}
