"""VGG-19 with batch norm, for small images (Simonyan & Zisserman, ICLR 2015; one linear layer as classifier)."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.layers import Conv, initialise
from offramp.models._options import check
from offramp.net import Backbone, Head

NETS = ("vgg19",)

_GROUPS = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))
"""Width over that of the first group, and number of convolutions."""


class ConvBlock(nn.Module):
    """3×3 convolution with bias, batch norm, ReLU; where a new group begins, after 2×2 max pooling.

    `eed_strides` are those of EED's exits, from the tap on: of the layouts of three, two and one convolutions that
    end in 512 channels, one whose costs round to its Table III. The trunk's own strides do not.
    """

    eed_strides = (2, 4, 2)

    def __init__(self, enters: int, leaves: int, pools: bool) -> None:
        super().__init__()
        self.pools = pools
        self.conv = Conv(enters, leaves, 3)
        self.bn = nn.BatchNorm2d(leaves)
        self.construct_fresh = partial(ConvBlock, enters, leaves, pools)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """(B, enters, H, W) -> (B, leaves, H, W), or half the size. The input is never changed: exits share it."""
        return F.relu(self.bn(self.conv(F.max_pool2d(maps, 2) if self.pools else maps)), inplace=True)


def build(name: str, *, classes: int, channels: int = 3, width: int = 64, image_size: int = 32) -> Backbone:
    """A VGG in four stages: groups 1, 2, 3, and the last two together; exits leave before the pooling.

    That is where EED has them. The last pooling belongs to the head.

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels of the first group; the others have 2, 4, 8 and 8 times as many.
        image_size: height and width of the images, for costs and shapes only.

    Raises:
        ValueError: for an unknown name, a count below 1, or images that five poolings do not leave a pixel of.
    """
    check(name, NETS, classes=classes, channels=channels, width=width, image_size=image_size)
    if image_size < 32:
        raise ValueError(f"{name} halves its images five times: image_size must be at least 32, got {image_size}")
    groups: list[list[nn.Module]] = []
    enters = channels
    for number, (wider, count) in enumerate(_GROUPS):
        groups.append([])
        for block in range(count):
            groups[-1].append(ConvBlock(enters, width * wider, pools=number > 0 and block == 0))
            enters = width * wider
    stages = [*groups[:3], groups[3] + groups[4]]
    head = Head(enters, classes, partial(nn.MaxPool2d, 2))
    return Backbone(tuple(nn.Sequential(*stage) for stage in stages), head, (channels, image_size, image_size))
