"""Depthwise convolutions in float32 where the rest of the network is autocast to bf16: on CPUs that is faster.

In bf16 the backward pass of a depthwise convolution takes longer than in float32; `benchmarks/train_models.py` measures
what it makes of whole networks.
"""

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn

KEY = "_float32_under_autocast"
"""The attribute that marks a module."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution of each channel by itself."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels


def has_depthwise(net: nn.Module) -> bool:
    """Whether there is a depthwise convolution in a network."""
    return any(map(is_depthwise, net.modules()))


def keep_float32(net: nn.Module) -> None:
    """Let the depthwise convolutions of a network compute in float32 under autocast; nothing else changes.

    Copies of the network do so, too.
    """
    for module in net.modules():
        if is_depthwise(module) and not keeps_float32(module):
            module.forward = MethodType(_forward, module)
            setattr(module, KEY, True)


def keeps_float32(module: nn.Module) -> bool:
    """Whether `keep_float32` was called for a module."""
    return bool(getattr(module, KEY, False))


def _forward(module: nn.Module, inputs: Tensor) -> Tensor:
    """The module's own forward pass, without autocast."""
    device = inputs.device.type
    forward_of_type: Callable[[nn.Module, Tensor], Tensor] = type(module).forward
    if device == "meta" or not torch.is_autocast_enabled(device):  # shapes alone have no autocast
        return forward_of_type(module, inputs)
    with torch.autocast(device, enabled=False):
        return forward_of_type(module, inputs.float())
