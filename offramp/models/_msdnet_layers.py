"""Layers of MSDNet: states are tuples of maps, one for each live scale."""

from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.layers import conv_norm_relu, initialise
from offramp.outputs import State

Scales = tuple[Tensor, ...]
"""The live maps, finest first. The coarsest is always the last: exits use it."""


def _start(module: nn.Module, he: bool) -> None:
    """He's start where asked for; else PyTorch's own, which the released code keeps (its rule reaches no layer)."""
    if he:
        initialise(module)
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)


class FirstLayer(nn.Module):
    """All scales of the image: the finest by a convolution, each coarser one by a strided convolution of the last."""

    def __init__(self, channels: int, widths: tuple[int, ...], large: bool, he: bool) -> None:
        super().__init__()
        if large:
            finest = [nn.Conv2d(channels, widths[0], 7, 2, 3), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
            self.finest = nn.Sequential(*finest, nn.MaxPool2d(3, 2, 1))
        else:
            self.finest = nn.Sequential(*conv_norm_relu(channels, widths[0], 3))
        self.coarser = nn.ModuleList([nn.Sequential(*conv_norm_relu(a, b, 3, 2)) for a, b in pairwise(widths)])
        self.construct_fresh = partial(FirstLayer, channels, widths, large, he)
        _start(self, he)

    def forward(self, inputs: Float[Tensor, "B D H W"]) -> Scales:
        """Maps of all scales for images (B, channels, H, W)."""
        scales = [self.finest(inputs)]
        for layer in self.coarser:
            scales.append(layer(scales[-1]))
        return tuple(scales)


def _narrowed(enters: int, leaves: int, factor: int, stride: int) -> nn.Sequential:
    """1×1 to at most `factor` × what leaves, then 3×3."""
    inner = min(enters, factor * leaves)
    return nn.Sequential(*conv_norm_relu(enters, inner, 1), *conv_norm_relu(inner, leaves, 3, stride))


class Layer(nn.Module):
    """One dense layer on all live scales: each keeps its map and gains channels, half from the next finer scale.

    The finest scale gains all from itself. Where `drops`, the finest scale of the input ends here: it lends its half
    to the next and is not handed on. No block represents the layers of a stage (`sampled` is None: `sketch` refuses).
    """

    sketch_block = None

    def __init__(
        self, widths: tuple[int, ...], gains: tuple[int, ...], bottlenecks: tuple[int, ...], drops: bool, he: bool
    ) -> None:
        super().__init__()
        self.drops = drops
        self.keeps = nn.ModuleList()
        self.downs = nn.ModuleList()
        for scale in range(int(drops), len(widths)):
            gain = gains[scale] // 2 if scale else gains[scale]
            self.keeps.append(_narrowed(widths[scale], gain, bottlenecks[scale], 1))
            if scale:
                self.downs.append(_narrowed(widths[scale - 1], gain, bottlenecks[scale - 1], 2))
        self.construct_fresh = partial(Layer, widths, gains, bottlenecks, drops, he)
        _start(self, he)

    def forward(self, scales: Scales) -> Scales:
        """Maps of the live scales, finest first. The input is never changed: exits share it."""
        live = scales[1:] if self.drops else scales
        maps = [keep(state) for keep, state in zip(self.keeps, live, strict=True)]
        downs = [down(state) for down, state in zip(self.downs, scales, strict=False)]
        if self.drops:
            return tuple(torch.cat(parts, 1) for parts in zip(live, downs, maps, strict=True))
        coarser = [torch.cat(parts, 1) for parts in zip(live[1:], downs, maps[1:], strict=True)]
        return (torch.cat((live[0], maps[0]), 1), *coarser)


class Transition(nn.Module):
    """1×1 convolutions that narrow every live scale after one was dropped."""

    sketch_block = None

    def __init__(self, widths: tuple[int, ...], leaves: tuple[int, ...], he: bool) -> None:
        super().__init__()
        pairs = zip(widths, leaves, strict=True)
        self.layers = nn.ModuleList([nn.Sequential(*conv_norm_relu(a, b, 1)) for a, b in pairs])
        self.construct_fresh = partial(Transition, widths, leaves, he)
        _start(self, he)

    def forward(self, scales: Scales) -> Scales:
        """The same scales, narrower."""
        return tuple(layer(state) for layer, state in zip(self.layers, scales, strict=True))


class Classifier(nn.Module):
    """Two strided 3×3 convolutions on the coarsest scale, average pooling, linear: MSDNet's exit.

    `inner` is the width of the convolutions, None for that of the map.
    """

    def __init__(self, width: int, classes: int, inner: int | None, he: bool) -> None:
        super().__init__()
        middle = width if inner is None else inner
        self.body = nn.Sequential(*conv_norm_relu(width, middle, 3, 2), *conv_norm_relu(middle, middle, 3, 2))
        self.classifier = nn.Linear(middle, classes)
        self.exit_head = partial(Classifier, inner=inner, he=he)
        self.construct_fresh = partial(Classifier, width, classes, inner, he)
        _start(self, he)

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C), feature (B, D) and map (B, D, H/4, W/4) for the coarsest scale (B, width, H, W)."""
        features = self.body(state[-1] if isinstance(state, tuple) else state)
        pooled = features.mean((2, 3))
        return self.classifier(pooled), pooled, features
