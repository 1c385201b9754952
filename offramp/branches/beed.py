"""One bottleneck without expansion or shortcut per deeper stage (BEED, Lee & Lee 2022, supplement Fig. 1)."""

from collections.abc import Sequence

from torch import nn

from offramp.branches._stages import steps
from offramp.layers import conv_norm_relu, initialise
from offramp.net import Backbone, Branch, Head


def build(backbone: Backbone, exit: int, classes: int, *, widths: Sequence[int] | None = None) -> nn.Module | None:
    """1×1, 3×3 with the deeper stage's stride, 1×1, each with batch norm and ReLU, for each stage; then a head.

    Widths follow the supplement: 128, 256, 512 for a ResNet18. For bottleneck ResNets, which the supplement does not
    cover, they are the inner widths of the blocks, and at the end the width of the backbone, as in EED, so that
    features can be compared.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.
        widths: other widths, one per stage from the second on; deeper exits use the last ones.

    Raises:
        ValueError: if the stages pass on no maps or the widths do not fit.
    """
    plan = steps("beed", backbone, exit, widths)
    if plan is None:
        return None
    enters, deeper = plan
    body: list[nn.Module] = []
    for width, stride in deeper:
        body += conv_norm_relu(enters, width, 1)
        body += conv_norm_relu(width, width, 3, stride)
        body += conv_norm_relu(width, width, 1)
        enters = width
    layers = nn.Sequential(*body)
    initialise(layers)
    return Branch(layers, Head(enters, classes))
