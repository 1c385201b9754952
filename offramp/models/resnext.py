"""ResNeXt-29 for small images: bottlenecks whose 3×3 convolution works in groups (Xie et al., CVPR 2017)."""

from torch import nn

from offramp.models._options import check
from offramp.models._stages import make_stages, widths_along
from offramp.models.resnet import Bottleneck, Stem
from offramp.net import Backbone, Head

NETS = ("resnext29-4x64d", "resnext29-8x64d")


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
        return Bottleneck(enters, cardinality * width * 2**stage, leaves, stride, groups=cardinality)

    widths = widths_along(width, [4 * width * 2**stage for stage in range(3)], counts)
    stages = make_stages(counts, widths, block)
    return Backbone((stem, *stages), Head(widths[-1], classes), (channels, image_size, image_size))
