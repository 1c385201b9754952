"""One separable convolution unit per deeper stage (Task-Oriented Feature Distillation, Zhang et al., NeurIPS 2020)."""

from torch import nn

from offramp.branches._stages import steps
from offramp.layers import conv, initialise
from offramp.net import Backbone, Branch, Head


def build(backbone: Backbone, exit: int, classes: int) -> nn.Module | None:
    """Depthwise 3×3 with the deeper stage's stride and 1×1, then depthwise 3×3 and 1×1 to its width; then a head.

    Batch norm and ReLU follow each 1×1; no biases. Widths are those of the deeper stages' maps. There is no exit
    behind a stem. TOFD's loss is not included; the exits can be trained by any method.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.

    Raises:
        ValueError: if the stages pass on no maps, or there is no such exit.
    """
    plan = steps("tofd", backbone, exit, inside=False)
    if plan is None:
        return None
    enters, deeper = plan
    body: list[nn.Module] = []
    for width, stride in deeper:
        body += [*_separable(enters, enters, stride), *_separable(enters, width, 1)]
        enters = width
    layers = nn.Sequential(*body)
    initialise(layers)
    return Branch(layers, Head(enters, classes))


def _separable(enters: int, leaves: int, stride: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(enters, enters, 3, stride, 1, groups=enters, bias=False)
    return [depthwise, conv(enters, leaves, 1), nn.BatchNorm2d(leaves), nn.ReLU(inplace=True)]
