"""PyramidNet for small images: every block a little wider than the one before (Han et al., CVPR 2017; additive)."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.layers import conv, initialise, norm_relu
from offramp.models._options import check
from offramp.models._stages import make_stages
from offramp.net import Backbone, Head

NETS = ("pyramidnet110-270",)


class Stem(nn.Module):
    """3×3 convolution and batch norm, without ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = conv(channels, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.construct_fresh = partial(Stem, channels, width)
        initialise(self)

    def forward(self, inputs: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H W"]:
        """Maps (B, width, H, W) for images (B, channels, H, W)."""
        outputs: Tensor = self.bn(self.conv(inputs))
        return outputs


class PyramidBlock(nn.Module):
    """Norm, 3×3 convolution, norm, ReLU, 3×3 convolution, norm; the shortcut is averaged 2×2 and padded with zeros.

    `sampled` is what `sketch` takes where the block is the first of its group: the same block with the width of the
    group's end, because every block of a group is wider than the one before.
    """

    def __init__(self, enters: int, leaves: int, stride: int, ends: int) -> None:
        super().__init__()
        self.stride = stride
        self.wider = leaves - enters
        self.bn1 = nn.BatchNorm2d(enters)
        self.conv1 = conv(enters, leaves, 3, stride)
        self.bn2 = nn.BatchNorm2d(leaves)
        self.conv2 = conv(leaves, leaves, 3)
        self.bn3 = nn.BatchNorm2d(leaves)
        self.construct_fresh = partial(PyramidBlock, enters, leaves, stride, ends)
        self.sketch_block = partial(PyramidBlock, enters, ends, stride, ends)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """(B, enters, H, W) -> (B, leaves, H/stride, W/stride). The input is never changed: exits share it."""
        inner = F.relu(self.bn2(self.conv1(self.bn1(maps))), inplace=True)
        inner = self.bn3(self.conv2(inner))
        past = F.avg_pool2d(maps, 2, 2, ceil_mode=True) if self.stride == 2 else maps
        summed: Tensor = inner + F.pad(past, (0, 0, 0, 0, 0, self.wider))
        return summed


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    width: int = 16,
    alpha: int = 270,
    blocks: int = 18,
    image_size: int = 32,
) -> Backbone:
    """A PyramidNet of basic blocks in four stages: the stem, then three groups.

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels after the stem.
        alpha: channels added by all blocks together, in equal steps; widths are rounded.
        blocks: blocks per group (depth 110: 18).
        image_size: height and width of the images, for costs and shapes only.

    Raises:
        ValueError: for an unknown name, or a count below 1.
    """
    counts = {"width": width, "alpha": alpha, "blocks": blocks, "image_size": image_size}
    check(name, NETS, classes=classes, channels=channels, **counts)
    widths = [round(width + alpha * step / (3 * blocks)) for step in range(3 * blocks + 1)]
    stem = nn.Sequential(Stem(channels, width))

    def block(group: int, enters: int, leaves: int, stride: int) -> nn.Module:
        return PyramidBlock(enters, leaves, stride, widths[(group + 1) * blocks])

    stages = make_stages([blocks] * 3, widths, block)
    head = Head(widths[-1], classes, partial(norm_relu, widths[-1]))
    return Backbone((stem, *stages), head, (channels, image_size, image_size))
