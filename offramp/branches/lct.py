"""One convolution without batch norm (Local Critic Training, Lee & Lee 2019/2022, as adapted by BEED)."""

from math import prod

from torch import nn

from offramp.branches._stages import maps, steps
from offramp.layers import Conv, initialise
from offramp.net import Backbone, Branch, Head
from offramp.outputs import State


class Flatten(nn.Module):
    """The original's end: a linear layer on the whole map. Returns (logits (B, C), feature (B, D·H·W), map)."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(prod(shape), classes)

    def forward(self, state: State) -> tuple[State, State, State]:
        """Outputs for maps of exactly the shape that the exit was built for."""
        assert not isinstance(state, tuple)
        feature = state.flatten(1)
        return self.classifier(feature), feature, state


def build(backbone: Backbone, exit: int, classes: int, *, original: bool = False) -> nn.Module | None:
    """3×3 convolution with bias to the width and map size of the network's last stage, ReLU, then a head.

    BEED's adaptation, which compares features, is not published: width and stride are chosen so that they can be
    compared; there is no exit behind a stem. The original (TensorFlow) has 128 filters, stride 1 and a linear layer on
    the whole map, and accepts only images of the size that the network was built for.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.
        original: use the original form.

    Raises:
        ValueError: if the stages pass on no maps, or there is no such exit.
    """
    if steps("lct", backbone, exit) is None:
        return None
    along = maps("lct", backbone)
    enters, height, width = along[exit]
    leaves, stride = (128, 1) if original else (along[-1][0], max(1, round(height / along[-1][1])))
    body = nn.Sequential(Conv(enters, leaves, 3, stride), nn.ReLU(inplace=True))
    initialise(body)
    head = Flatten((leaves, height, width), classes) if original else Head(leaves, classes)
    return Branch(body, head)
