"""The network that tests of the command line train: a tenth of the time of the smallest ResNet."""

from torch import nn

from offramp.net import Backbone, Head


def tiny(classes: int, channels: int = 3, image_size: int = 8) -> Backbone:
    """Four blocks of a convolution with batch norm, in stages of its own: four exits, and nothing has to be traced."""
    stages = tuple(nn.Sequential(block) for block in _blocks(channels))
    return Backbone(stages, Head(16, classes), (channels, image_size, image_size))


def whole(classes: int, channels: int = 3) -> nn.Sequential:
    """The same as a model that is cut: with `--exits-after 0,1,2`, it has four exits."""
    return nn.Sequential(*_blocks(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


def _blocks(channels: int) -> list[nn.Sequential]:
    widths = ((channels, 4, 1), (4, 8, 2), (8, 16, 2), (16, 16, 1))
    return [nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in widths]


NET = ["--net", "python:cli_nets:tiny", "--branch", "linear"]
CUT = ["--net", "python:cli_nets:whole", "--exits-after", "0,1,2", "--branch", "linear"]
"""Options of the command line for them."""
