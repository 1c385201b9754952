"""Stages of blocks as ResNets have them."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

BuildBlock = Callable[[int, int, int, int], nn.Module]
"""(stage, channels that enter, channels that leave, stride) -> block."""


def make_stages(counts: Sequence[int], widths: Sequence[int], block: BuildBlock) -> list[nn.Sequential]:
    """Stages of `counts` blocks each; the first block of every stage but the first halves the maps.

    Args:
        widths: channels before the first block and after every block.
        block: builds one block.
    """
    stages: list[nn.Sequential] = []
    pairs = pairwise(widths)
    for stage, count in enumerate(counts):
        strides = [2 if stage else 1, *[1] * (count - 1)]
        blocks = [block(stage, *next(pairs), stride) for stride in strides]
        stages.append(nn.Sequential(*blocks))
    return stages


def widths_along(width: int, leaves: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Channels before the first block and after every block, if all blocks of a stage leave `leaves` of that stage."""
    return [width, *(leave for leave, count in zip(leaves, counts, strict=True) for _ in range(count))]
