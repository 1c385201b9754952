"""ResNeXt-29 for small images: bottlenecks whose 3×3 convolution works in groups (Xie et al., CVPR 2017)."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.layers import Conv, conv, initialise
from offramp.models._options import check
from offramp.models._stages import make_stages, widths_along
from offramp.models.resnet import Stem, shortcut
from offramp.net import Backbone, Head

NETS = ("resnext29-4x64d", "resnext29-8x64d")


class GroupedBottleneck(nn.Module):
    """1×1, grouped 3×3 (with the stride) and 1×1 convolutions around a shortcut.

    `inner` channels in `cardinality` groups; leaves `leaves` channels.
    """

    def __init__(self, enters: int, inner: int, leaves: int, cardinality: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(enters, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = Conv(inner, inner, 3, stride, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, leaves, 1)
        self.bn3 = nn.BatchNorm2d(leaves)
        self.shortcut = shortcut(enters, leaves, stride)
        self.construct_fresh = partial(GroupedBottleneck, enters, inner, leaves, cardinality, stride)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """(B, enters, H, W) -> (B, leaves, H/stride, W/stride). The input is never changed: exits share it."""
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        inner = self.bn3(self.conv3(inner))
        inner += self.shortcut(maps)
        return F.relu(inner, inplace=True)


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    width: int = 64,
    blocks: int = 3,
    image_size: int = 32,
) -> Backbone:
    """A ResNeXt in four stages: the stem, then three groups of bottlenecks. `8x64d` has 8 groups of 64 channels.

    The stem is a stage of its own because MUSE, which has four classifiers on these three groups, leaves behind it
    (EED begins after the first group).

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels after the stem and of a group of the first stage; stage g (from 0) leaves 4 × width × 2^g.
        blocks: blocks per stage (29 layers: 3).
        image_size: height and width of the images, for costs and shapes only.

    Raises:
        ValueError: for an unknown name, or a count below 1.
    """
    check(name, NETS, classes=classes, channels=channels, width=width, blocks=blocks, image_size=image_size)
    cardinality = int(name.split("-")[1].split("x")[0])
    stem, counts = nn.Sequential(Stem(channels, width, "cifar", True)), [blocks] * 3

    def block(stage: int, enters: int, leaves: int, stride: int) -> nn.Module:
        return GroupedBottleneck(enters, cardinality * width * 2**stage, leaves, cardinality, stride)

    widths = widths_along(width, [4 * width * 2**stage for stage in range(3)], counts)
    stages = make_stages(counts, widths, block)
    return Backbone((stem, *stages), Head(widths[-1], classes), (channels, image_size, image_size))
