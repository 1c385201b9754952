"""The network that tests of the command line train: a tenth of the time of the smallest ResNet."""

from torch import nn


def tiny(classes: int, channels: int = 3) -> nn.Sequential:
    """Four convolutions with batch norms, one a block: with `--exits-after 0,1,2`, it has four exits."""
    widths = ((channels, 4, 1), (4, 8, 2), (8, 16, 2), (16, 16, 1))
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in widths]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


NET = ["--net", "python:cli_nets:tiny", "--exits-after", "0,1,2", "--branch", "linear"]
"""Options of the command line for it."""
