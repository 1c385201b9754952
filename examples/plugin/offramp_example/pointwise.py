"""One 1x1 convolution to the network's own width, then pooling and a classifier."""

from torch import nn

from offramp import Backbone, Branch, Head
from offramp.branches import check_exit, maps
from offramp.layers import conv_norm_relu, initialise


def build(backbone: Backbone, exit: int, classes: int) -> nn.Module:
    """The exit behind stage `exit`, counted from 0; its features are as wide as those of the final exit.

    Raises:
        ValueError: if there is no such exit, or the stages have no maps.
    """
    check_exit("pointwise", backbone, exit)
    shapes = maps("pointwise", backbone)  # (channels, height, width) after every stage
    width = shapes[-1][0]
    body = nn.Sequential(*conv_norm_relu(shapes[exit][0], width, 1))
    initialise(body)
    return Branch(body, Head(width, classes))
