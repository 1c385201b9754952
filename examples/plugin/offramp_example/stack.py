"""Stacks of plain 3x3 convolutions in four stages, without shortcuts."""

from torch import nn

from offramp import Backbone, Head
from offramp.layers import conv_norm_relu

NETS = ("stack8", "stack12")

_LAYERS = {"stack8": 2, "stack12": 3}


def build(name: str, *, classes: int, channels: int = 3, width: int = 32) -> Backbone:
    """A stack of convolutions; each stage but the first halves the maps and doubles the width.

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the inputs.
        width: channels of the first stage.
    """
    stages, enters = [], channels
    for index in range(4):
        blocks = []
        for layer in range(_LAYERS[name]):
            stride = 2 if index and layer == 0 else 1
            blocks.append(nn.Sequential(*conv_norm_relu(enters, width * 2**index, 3, stride)))
            enters = width * 2**index
        stages.append(nn.Sequential(*blocks))
    return Backbone(tuple(stages), Head(enters, classes), (channels, 32, 32))
