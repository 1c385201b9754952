"""MobileNetV2 for small images (Sandler et al., CVPR 2018), as in the supplement of BEED."""

from torch import nn
from torch.nn import functional as F

from offramp.models._inverted import InvertedResidual, Stem, WideHead
from offramp.models._options import check
from offramp.net import Backbone

NETS = ("mobilenetv2",)

_GROUPS = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Per stage and group: expansion, width, blocks, stride of the first block."""


def build(name: str, *, classes: int, channels: int = 3, width: int = 32, image_size: int = 32) -> Backbone:
    """A MobileNetV2 in four stages: exits leave at 24, 32 and 96 channels, before the maps shrink.

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels after the stem; all other widths follow in proportion, rounded.
        image_size: height and width of the images, for costs and shapes only.

    Raises:
        ValueError: for an unknown name, or a count below 1.
    """
    check(name, NETS, classes=classes, channels=channels, width=width, image_size=image_size)
    stages: list[nn.Sequential] = []
    enters = width
    for groups in _GROUPS:
        parts: list[nn.Module] = [] if stages else [Stem(channels, width, F.relu6)]
        for expansion, of_32, count, stride in groups:
            leaves = max(1, round(of_32 * width / 32))
            for block in range(count):
                planes = enters * expansion
                parts.append(InvertedResidual(enters, leaves, 1 if block else stride, planes=planes))
                enters = leaves
        stages.append(nn.Sequential(*parts))
    head = WideHead(enters, max(1, round(1280 * width / 32)), classes, F.relu6)
    return Backbone(tuple(stages), head, (channels, image_size, image_size))
