"""EfficientNet-B0 for small images (Tan & Le, ICML 2019), as in the supplement of BEED."""

from functools import partial

from torch import nn
from torch.nn import functional as F

from offramp.models._inverted import InvertedResidual, Stem, WideHead
from offramp.models._options import check
from offramp.net import Backbone, Head

NETS = ("efficientnetb0",)


def _groups(third: int) -> tuple[tuple[tuple[int, int, int, int, int], ...], ...]:
    """Per stage and group: expansion, width, blocks, stride of the first block, kernel."""
    return (
        ((1, 16, 1, 1, 3), (6, 24, 2, 1, 3)),
        ((6, third, 2, 2, 5),),
        ((6, 80, 3, 2, 3), (6, 112, 3, 1, 5)),
        ((6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
    )


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    width: int = 32,
    third: int = 40,
    wide_head: bool = False,
    image_size: int = 32,
) -> Backbone:
    """An EfficientNet-B0 in four stages: exits leave at 24, 40 and 112 channels, before the maps shrink.

    Kernels and squeeze and excitation are B0's own; the supplement does not print them.

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels after the stem; all other widths follow in proportion, rounded.
        third: width of the third group (at a stem of 32). The supplement prints 60, but its exits' 240 = 6 × 40.
        wide_head: classify after a 1×1 convolution to 1280 channels, as for large images; the supplement has none.
        image_size: height and width of the images, for costs and shapes only.

    Raises:
        ValueError: for an unknown name, or a count below 1.
    """
    check(name, NETS, classes=classes, channels=channels, width=width, third=third, image_size=image_size)
    stages: list[nn.Sequential] = []
    enters = width
    for groups in _groups(third):
        parts: list[nn.Module] = [] if stages else [Stem(channels, width, F.silu)]
        for expansion, of_32, count, stride, kernel in groups:
            leaves = max(1, round(of_32 * width / 32))
            for block in range(count):
                squeeze = max(1, enters // 4)
                form = partial(InvertedResidual, planes=enters * expansion, kernel=kernel, squeeze=squeeze)
                parts.append(form(enters, leaves, 1 if block else stride, activation=F.silu))
                enters = leaves
        stages.append(nn.Sequential(*parts))
    inner = max(1, round(1280 * width / 32))
    head = WideHead(enters, inner, classes, F.silu) if wide_head else Head(enters, classes)
    return Backbone(tuple(stages), head, (channels, image_size, image_size))
