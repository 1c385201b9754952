"""Pooling and a linear classifier: the cheapest exit; it fits every network."""

from torch import nn

from offramp.branches._stages import check_exit, coarsest, shapes
from offramp.net import Backbone, Branch, Head


def build(backbone: Backbone, exit: int, classes: int) -> nn.Module:
    """Global average pooling and a linear layer on the output of the stage: maps, tokens, or the coarsest scale.

    Features are as wide as the output of the stage, which differs between stages: losses that compare features skip
    them.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.

    Raises:
        ValueError: if there is no such exit.
    """
    check_exit("linear", backbone, exit)
    shape = coarsest(shapes(backbone, exit + 1)[0][-1][-1])
    width = shape[0] if len(shape) == 3 else shape[-1]
    return Branch(nn.Identity(), Head(width, classes))
