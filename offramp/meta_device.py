"""Modules run on the meta device: shapes and costs without computing anything."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from offramp.lookup import with_parameters
from offramp.outputs import State

Shape = tuple[int, ...]


def run_on_meta(module: nn.Module, *args: Any, training: bool = False, whole: bool = False) -> Any:
    """What the module answers for arguments on the meta device, in evaluation mode unless `training`.

    The module itself is left as it is: no weight is moved or copied, modes and buffers stay.

    Args:
        whole: batch norms take place as well, for those who count operations; in evaluation mode only shapes are right
            otherwise.
    """
    tensors = {
        name: torch.empty_like(tensor, device="meta")
        for group in (module.named_parameters(), module.named_buffers())
        for name, tensor in group
    }
    modes = [(part, part.training) for part in module.modules()]
    norms = [] if whole or training else _norms(module)
    module.train(training)
    for norm in norms:
        norm.forward = partial(_normed, norm)  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            return functional_call(module, tensors, args)
    finally:
        for norm in norms:
            del norm.forward
        for part, mode in modes:
            part.training = mode


def _norms(module: nn.Module) -> list[_BatchNorm]:
    """PyTorch's own batch norms in it, as they are: one that was changed or derived may do more."""
    own = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and type(part) in own and "forward" not in vars(part)
    ]


def _normed(norm: _BatchNorm, inputs: Tensor) -> Tensor:
    """What a batch norm answers on meta; PyTorch's own way there, through Python, takes most of a network's time."""
    if inputs.dim() < 2 or inputs.shape[1] != norm.num_features:
        return type(norm).forward(norm, inputs)  # which says what is wrong
    norm._check_input_dim(inputs)  # type: ignore[no-untyped-call]
    return torch.empty_like(inputs)


def blank(module: nn.Module, shape: tuple[int, int, int], batch: int = 1) -> Tensor:
    """An input (batch, channels, height, width) on the meta device, in the precision of the module's weights."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty((batch, *shape), dtype=dtype, device="meta")


def check_input(module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse inputs (channels, height, width) that the module cannot take.

    Raises:
        ValueError: with PyTorch's reason, and the smallest square inputs that fit where larger ones do.
    """
    reason = _refusal(module, shape)
    if reason is not None:
        raise ValueError(f"inputs of {written(shape)} do not fit the network: {reason}{smallest(module, shape)}")


def check_single(module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse to train on batches of one sample where a batch norm would see one value per channel.

    Raises:
        ValueError: naming the option.
    """
    try:
        run_on_meta(module, blank(module, shape), training=True)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise with_parameters(
            ValueError(
                "a batch norm of this network cannot train on one sample at a time: raise batch_size to 2 or more per "
                "device"
            ),
            "batch_size",
        ) from None


def smallest(module: nn.Module, shape: tuple[int, int, int]) -> str:
    """The end of a sentence about inputs that do not fit: the smallest square that does, if any up to 1024 does."""
    channels, side = shape[0], max(shape[1:])
    while side < 1024 and _refusal(module, (channels, side, side)):
        side *= 2
    if _refusal(module, (channels, side, side)):
        return ""
    low, high = min(shape[1:]), side  # `low` is refused or not square, `high` fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _refusal(module, (channels, middle, middle)) else (low, middle)
    return f"; the smallest that fit are {written((channels, high, high))}"


def _refusal(module: nn.Module, shape: tuple[int, int, int]) -> str | None:
    """The first line of PyTorch's error for inputs of this shape, None where they fit."""
    try:
        run_on_meta(module, blank(module, shape))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


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
