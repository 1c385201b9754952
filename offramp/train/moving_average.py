"""A moving average of a network's weights and batch statistics."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of a network that follows its weights and buffers; stored as PyTorch's `AveragedModel` stores it.

    That class asks the device twice in every step how many steps it has averaged; here the host knows.

    Args:
        net: the network, on its device.
        decay: share of the average that every step keeps.
    """

    n_averaged: Tensor

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay, self.begun = copy.deepcopy(net), decay, False
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64, device=next(net.parameters()).device))

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Follow the network by one step; the first one is copied."""
        pairs = list(zip(_tensors(self.module), _tensors(net), strict=True))
        if not self.begun:
            for average, new in pairs:
                average.copy_(new)
        else:
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            torch._foreach_lerp_([average for average, _ in floats], [new for _, new in floats], 1 - self.decay)
            _follow_counts([pair for pair in pairs if not pair[0].is_floating_point()], self.decay)
        self.begun = True
        self.n_averaged += 1

    def restart(self) -> None:
        """Discard the average: the next step is copied."""
        self.begun = False
        self.n_averaged.zero_()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state dict."""
        self.load_state_dict(state)
        self.begun = bool(self.n_averaged)


def _follow_counts(pairs: list[tuple[Tensor, Tensor]], decay: float) -> None:
    """Move whole numbers towards the new ones, rounded down; numbers of batches, of which there are many, together."""
    counts = [pair for pair in pairs if pair[0].dtype == torch.int64 and not pair[0].dim()]
    if counts:
        averages, new = (torch.stack(side) for side in zip(*counts, strict=True))
        moved = (averages * decay + new * (1 - decay)).to(torch.int64)
        torch._foreach_copy_([average for average, _ in counts], list(moved.unbind()))
    for average, now in pairs:
        if average.dtype != torch.int64 or average.dim():
            average.copy_(average * decay + now * (1 - decay))


def _tensors(net: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]
