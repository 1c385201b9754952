"""Wide ResNets for small images: pre-activation blocks, few and wide (Zagoruyko & Komodakis, BMVC 2016)."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.layers import conv, initialise, norm_relu
from offramp.models._options import check
from offramp.models._stages import make_stages, widths_along
from offramp.net import Backbone, Head

NETS = ("wrn16-4", "wrn20-8", "wrn22-10", "wrn28-4", "wrn28-10", "wrn44-8")


class Stem(nn.Module):
    """One 3×3 convolution; norm and ReLU are in the first block."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = conv(channels, width, 3)
        self.construct_fresh = partial(Stem, channels, width)
        initialise(self)

    def forward(self, inputs: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H W"]:
        """Maps (B, width, H, W) for images (B, channels, H, W)."""
        outputs: Tensor = self.conv(inputs)
        return outputs


class WideBlock(nn.Module):
    """Norm, ReLU, 3×3 convolution, twice, beside a shortcut; what it passes on is a raw sum.

    Where the width or size changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, enters: int, leaves: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(enters)
        self.conv1 = conv(enters, leaves, 3, stride)
        self.bn2 = nn.BatchNorm2d(leaves)
        self.conv2 = conv(leaves, leaves, 3)
        self.shortcut = None if enters == leaves and stride == 1 else conv(enters, leaves, 1, stride)
        self.construct_fresh = partial(WideBlock, enters, leaves, stride)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """(B, enters, H, W) -> (B, leaves, H/stride, W/stride). The input is never changed: exits share it."""
        active = F.relu(self.bn1(maps), inplace=True)
        inner = F.relu(self.bn2(self.conv1(active)), inplace=True)
        summed: Tensor = self.conv2(inner) + (maps if self.shortcut is None else self.shortcut(active))
        return summed


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    width: int = 16,
    blocks: int | None = None,
    image_size: int = 32,
) -> Backbone:
    """A wide ResNet in four stages: the stem, then three groups. `wrn28-10` has depth 28 and is 10 times as wide.

    The stem is a stage of its own because MUSE and MSD attach their first of four classifiers to it (EED and BEED,
    with fewer exits, begin after the first group).

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels after the stem; group g (from 0) has width × 2^g × the factor in the name.
        blocks: blocks per group. Default (depth − 4) / 6, rounded up: 20 and 44 are no depths of a wide ResNet, which
            has 6n + 4 layers; they are read as 6n + 2 (3 and 7 blocks). 2 and 6 are the other reading.
        image_size: height and width of the images, for costs and shapes only.

    Raises:
        ValueError: for an unknown name, or a count below 1.
    """
    check(name, NETS, classes=classes, channels=channels, width=width, image_size=image_size)
    depth, wider = map(int, name.removeprefix("wrn").split("-"))
    count = -(-(depth - 4) // 6) if blocks is None else blocks
    check(name, NETS, blocks=count)
    stem, counts = nn.Sequential(Stem(channels, width)), [count] * 3
    widths = widths_along(width, [width * 2**group * wider for group in range(3)], counts)
    stages = make_stages(counts, widths, lambda group, enters, leaves, stride: WideBlock(enters, leaves, stride))
    head = Head(widths[-1], classes, partial(norm_relu, widths[-1]))
    return Backbone((stem, *stages), head, (channels, image_size, image_size))
