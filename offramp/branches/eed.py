"""One 3×3 convolution per deeper stage (Exit-Ensemble Distillation, Lee & Lee 2022: "three, two, one conv layers")."""

from collections.abc import Sequence

from torch import nn

from offramp.branches._stages import steps
from offramp.layers import conv_norm_relu, initialise
from offramp.net import Backbone, Branch, Head
from offramp.protocols import EedStrides


def build(
    backbone: Backbone,
    exit: int,
    classes: int,
    *,
    widths: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> nn.Module | None:
    """ReLU, then 3×3 convolution with the deeper stage's stride, batch norm and ReLU for each; then a head.

    Widths are those of the papers' Table III: 128, 256, 512 for a ResNet18 and 128, 256, 2048 for a ResNet50. The first
    ReLU has an effect only behind stages that end without one (wide ResNets, PyramidNet).

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.
        widths: other widths, one per stage from the second on; deeper exits use the last ones.
        strides: other strides, in the order of the convolutions; an exit of n convolutions uses the first n. VGG
            defines its own, because with the strides of its stages the costs would differ from the paper's Table III.

    Raises:
        ValueError: if the stages pass on no maps or the widths or strides do not fit.
    """
    plan = steps("eed", backbone, exit, widths)
    if plan is None:
        return None
    enters, deeper = plan
    if strides is None:
        first = backbone.stages[exit][0]
        strides = first.eed_strides if isinstance(first, EedStrides) else [step.stride for step in deeper]
    if len(strides) < len(deeper) or min(strides) < 1:
        raise ValueError(f"eed needs {len(deeper)} strides of at least 1 behind stage {exit + 1}, got {list(strides)}")
    body: list[nn.Module] = [nn.ReLU()]  # not in place: the backbone uses the same maps
    for (width, _), stride in zip(deeper, strides, strict=False):
        body += conv_norm_relu(enters, width, 3, stride)
        enters = width
    layers = nn.Sequential(*body)
    initialise(layers)
    return Branch(layers, Head(enters, classes))
