"""ResNet 18/34/50/101/152 for small (CIFAR) and large (ImageNet) images (He et al., CVPR 2016)."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.layers import Conv, conv, initialise
from offramp.lookup import ParameterError, unknown
from offramp.models import form_of
from offramp.models._options import check
from offramp.models._stages import make_stages, widths_along
from offramp.net import Backbone, Head
from offramp.text import as_typed

NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_SIZE = {"cifar": 32, "imagenet": 224}


class Stem(nn.Module):
    """The layers before the first block: 3×3 at full size for CIFAR, 7×7 and max pooling (4 times smaller) else.

    `relu=False` leaves out the ReLU after the batch norm, as the released code of EED and BEED does.
    """

    def __init__(self, channels: int, width: int, form: str, relu: bool) -> None:
        super().__init__()
        self.conv = conv(channels, width, 3) if form == "cifar" else conv(channels, width, 7, 2)
        self.bn = nn.BatchNorm2d(width)
        self.relu = relu
        self.pools = form != "cifar"
        self.construct_fresh = partial(Stem, channels, width, form, relu)
        initialise(self)

    def forward(self, inputs: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """Maps (B, width, H', W') for images (B, channels, H, W)."""
        maps: Tensor = self.bn(self.conv(inputs))
        if self.relu:
            maps = F.relu(maps, inplace=True)
        return F.max_pool2d(maps, 3, 2, 1) if self.pools else maps


def shortcut(enters: int, leaves: int, stride: int) -> nn.Module:
    """1×1 convolution and batch norm where a block changes width or size; nothing elsewhere."""
    if stride == 1 and enters == leaves:
        return nn.Identity()
    return nn.Sequential(conv(enters, leaves, 1, stride), nn.BatchNorm2d(leaves))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut; the first carries the stride. Leaves `planes` channels."""

    def __init__(self, enters: int, planes: int, stride: int) -> None:
        super().__init__()
        self.exit_width = planes
        self.conv1 = conv(enters, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = shortcut(enters, planes, stride)
        self.construct_fresh = partial(BasicBlock, enters, planes, stride)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """(B, enters, H, W) -> (B, planes, H/stride, W/stride). The input is never changed: exits share it."""
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = self.bn2(self.conv2(inner))
        inner += self.shortcut(maps)
        return F.relu(inner, inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions around a shortcut.

    Args:
        enters, inner, leaves: channels before, within and after the block.
        stride: of the 3×3 convolution.
        groups: of the 3×3 convolution (ResNeXt).
        exit_width: width that exits imitate (`InnerWidth`); default that of the maps.
    """

    def __init__(
        self, enters: int, inner: int, leaves: int, stride: int, *, groups: int = 1, exit_width: int | None = None
    ) -> None:
        super().__init__()
        if exit_width:
            self.exit_width = exit_width
        self.conv1 = conv(enters, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = Conv(inner, inner, 3, stride, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, leaves, 1)
        self.bn3 = nn.BatchNorm2d(leaves)
        self.shortcut = shortcut(enters, leaves, stride)
        self.construct_fresh = partial(Bottleneck, enters, inner, leaves, stride, groups=groups, exit_width=exit_width)
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
    form: str = "auto",
    stem_relu: bool = True,
    parts: Sequence[int] = (1, 1, 1, 1),
    image_size: int | None = None,
) -> Backbone:
    """A ResNet in four stages, the stem in the first; with `parts`, in more.

    Args:
        name: one of `NETS`.
        classes: number of classes C.
        channels: channels of the images.
        width: channels after the stem; stage k (from 0) has width × 2^k, times 4 with bottleneck blocks.
        form: `cifar` (3×3 stem, no pooling), `imagenet` (7×7 stem with stride 2, max pooling; torchvision's), or
            `auto`: by the size of the images, `imagenet` from 64 pixels on.
        stem_relu: False leaves out the ReLU of the stem, as the released code of EED and BEED does.
        parts: into how many stages of about as many blocks each of the four is divided, because exits fit only between
            stages: 1,1,4,1 for four within the longest one of a ResNet101.
        image_size: height and width of the images, for costs and shapes only; default 32 or 224 by `form`.

    Raises:
        ValueError: for an unknown name or form, a count below 1, or a stage of fewer blocks than parts.
    """
    if form == "auto":
        form = form_of(image_size or 32)
    if form not in _SIZE:
        raise unknown("form", form, (*_SIZE, "auto"), listing="")
    size = _SIZE[form] if image_size is None else image_size
    check(name, NETS, classes=classes, channels=channels, width=width, image_size=size)
    basic, planes = name in ("resnet18", "resnet34"), [width * 2**stage for stage in range(4)]

    def block(stage: int, enters: int, leaves: int, stride: int) -> nn.Module:
        inner = planes[stage]
        if basic:
            return BasicBlock(enters, inner, stride)
        return Bottleneck(enters, inner, leaves, stride, exit_width=inner)

    stem, counts = Stem(channels, width, form, stem_relu), _BLOCKS[name]
    if len(parts) != len(counts) or not all(1 <= part <= count for part, count in zip(parts, counts, strict=True)):
        message = f"net.parts of {name} must be four numbers from 1 to its {as_typed(counts)} blocks"
        raise ParameterError(f"{message}, got {as_typed(parts)}", "net.parts")
    widths = widths_along(width, [inner * (1 if basic else 4) for inner in planes], counts)
    stages = make_stages(counts, widths, block)
    first, *deeper = (part for stage, count in zip(stages, parts, strict=True) for part in _divided(stage, count))
    head = Head(widths[-1], classes)
    return Backbone((nn.Sequential(stem, *first), *deeper), head, (channels, size, size))


def _divided(stage: nn.Sequential, parts: int) -> list[nn.Sequential]:
    """A stage as several in a row, whose numbers of blocks differ by at most one."""
    ends = pairwise(len(stage) * part // parts for part in range(parts + 1))
    return [nn.Sequential(*[*stage][start:end]) for start, end in ends]
