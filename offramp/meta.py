"""Modules run on the meta device: shapes and costs without computing anything."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from offramp.outputs import State

Shape = tuple[int, ...]


def run_on_meta(module: nn.Module, *args: Any) -> Any:
    """What the module answers for arguments on the meta device, in evaluation mode.

    The module itself is left as it is: no weight is moved or copied, modes and buffers stay.
    """
    tensors = {
        name: torch.empty_like(tensor, device="meta")
        for group in (module.named_parameters(), module.named_buffers())
        for name, tensor in group
    }
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return functional_call(module, tensors, args)
    finally:
        for part, mode in modes:
            part.training = mode


def blank(module: nn.Module, shape: tuple[int, int, int], batch: int = 1) -> Tensor:
    """An input (batch, channels, height, width) on the meta device, in the precision of the module's weights."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty((batch, *shape), dtype=dtype, device="meta")


def shape_of(state: State) -> Shape | tuple[Shape, ...]:
    """The shape of a state without its batch; of a tuple of tensors, the tuple of their shapes."""
    if isinstance(state, Tensor):
        return tuple(state.shape[1:])
    return tuple(tuple(tensor.shape[1:]) for tensor in state)


def written(shape: Shape | tuple[Shape, ...]) -> str:
    """A shape for a person: 64×8×8, and (64×8×8, 128×4×4) for a tuple of tensors."""
    if any(isinstance(size, tuple) for size in shape):
        return f"({', '.join('×'.join(map(str, part)) for part in shape if isinstance(part, tuple))})"
    return "×".join(map(str, shape))
