"""One bottleneck whose inner convolution is as large as its stride (Be Your Own Teacher, Zhang et al., ICCV 2019)."""

from math import prod

from torch import nn

from offramp.branches._stages import check_exit, maps
from offramp.layers import initialise
from offramp.net import Backbone, Branch, Head


def build(backbone: Backbone, exit: int, classes: int, *, hidden: int | None = None) -> nn.Module:
    """1×1 to `hidden`, s×s with stride s, 1×1 to the network's width, each with bias, batch norm, ReLU; then a head.

    s is the factor by which the rest of the network reduces the size of the maps (8, 4, 2 in a ResNet). The shape
    follows the released code; shortcuts that it defines but never uses are left out.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.
        hidden: inner width; default a quarter of the backbone's (MUSE §4.3; MUSE Fig. 3 sweeps it).

    Raises:
        ValueError: if the maps at the exit are smaller than s, or the stages pass on no maps.
    """
    check_exit("byot", backbone, exit)
    along = maps("byot", backbone)
    enters, height, width = along[exit]
    leaves = along[-1][0]
    inner = max(1, leaves // 4) if hidden is None else hidden
    if inner < 1:
        raise ValueError(f"byot needs a hidden width of at least 1, got {hidden}")
    size = prod(
        max(1, round(before[1] / after[1])) for before, after in zip(along[exit:], along[exit + 1 :], strict=False)
    )
    if min(height, width) < size:
        raise ValueError(
            f"byot's exit behind stage {exit + 1} needs maps of {size}×{size} or more, "
            f"but the stage passes on {enters}×{height}×{width}"
        )
    body: list[nn.Module] = []
    for come, go, kernel in ((enters, inner, 1), (inner, inner, size), (inner, leaves, 1)):
        body += [nn.Conv2d(come, go, kernel, kernel), nn.BatchNorm2d(go), nn.ReLU(inplace=True)]
    layers = nn.Sequential(*body)
    initialise(layers)
    return Branch(layers, Head(leaves, classes))
