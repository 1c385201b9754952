"""Inverted residual blocks, and the head that widens before it pools: what mobile networks are made of."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.layers import conv, initialise

Activation = Callable[[Tensor], Tensor]


class Squeeze(nn.Module):
    """Squeeze and excitation: channels weighted by what the whole map shows; both convolutions have biases."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.reduce = nn.Conv2d(width, inner, 1)
        self.expand = nn.Conv2d(inner, width, 1)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The maps, each channel times its weight in (0, 1)."""
        pooled = maps.mean((2, 3), keepdim=True)
        return maps * torch.sigmoid(self.expand(self.activation(self.reduce(pooled))))


class Stem(nn.Module):
    """3×3 convolution at full size, batch norm, activation."""

    def __init__(self, channels: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.conv = conv(channels, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.construct_fresh = partial(Stem, channels, width, activation)
        initialise(self)

    def forward(self, inputs: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H W"]:
        """Maps (B, width, H, W) for images (B, channels, H, W)."""
        return self.activation(self.bn(self.conv(inputs)))


class InvertedResidual(nn.Module):
    """1×1 to `planes`, depthwise k×k with the stride, 1×1 back, each with batch norm; the last is not activated.

    The first convolution is left out where it would not widen. There is a shortcut where neither width nor size
    changes. `squeeze` channels inside a squeeze and excitation before the last convolution, 0 for none.
    """

    def __init__(
        self,
        enters: int,
        leaves: int,
        stride: int,
        *,
        planes: int,
        kernel: int = 3,
        squeeze: int = 0,
        activation: Activation = F.relu6,
    ) -> None:
        super().__init__()
        self.exit_width = planes
        self.activation = activation
        self.adds = stride == 1 and enters == leaves
        self.widen = None if planes == enters else nn.Sequential(conv(enters, planes, 1), nn.BatchNorm2d(planes))
        self.depthwise = nn.Conv2d(planes, planes, kernel, stride, kernel // 2, groups=planes, bias=False)
        self.bn = nn.BatchNorm2d(planes)
        self.squeeze = Squeeze(planes, squeeze, activation) if squeeze else None
        self.narrow = nn.Sequential(conv(planes, leaves, 1), nn.BatchNorm2d(leaves))
        form = partial(InvertedResidual, planes=planes, kernel=kernel, squeeze=squeeze, activation=activation)
        self.construct_fresh = partial(form, enters, leaves, stride)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H2 W2"]:
        """(B, enters, H, W) -> (B, leaves, H/stride, W/stride). The input is never changed: exits share it."""
        inner = maps if self.widen is None else self.activation(self.widen(maps))
        inner = self.activation(self.bn(self.depthwise(inner)))
        if self.squeeze is not None:
            inner = self.squeeze(inner)
        narrow: Tensor = self.narrow(inner)
        return narrow + maps if self.adds else narrow


class WideHead(nn.Module):
    """1×1 convolution to `inner` channels, batch norm, activation, global average pooling and classifier.

    Feature and map are those that enter it, not the wide ones: exits end in the same width, so that methods can
    compare features (BEED's supplement lists 320 for its exits on MobileNetV2 and EfficientNet).
    """

    def __init__(self, enters: int, inner: int, classes: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.conv = conv(enters, inner, 1)
        self.bn = nn.BatchNorm2d(inner)
        self.classifier = nn.Linear(inner, classes)
        self.construct_fresh = partial(WideHead, enters, inner, classes, activation)
        initialise(self)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C), feature (B, enters) and map (B, enters, H, W)."""
        wide = self.activation(self.bn(self.conv(maps)))
        return self.classifier(wide.mean((2, 3))), maps.mean((2, 3)), maps
