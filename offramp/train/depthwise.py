"""Depthwise convolutions in training on CPUs: in float32 beside bf16, and with gradients that oneDNN computes slowly.

oneDNN has vectorised code for the gradient of a depthwise weight of at most three columns, and for the gradient of the
inputs in bf16 without stride; other cases run in slow reference code. `fast_gradients` computes the gradient of a wider
weight in strips of three columns, and that of the inputs in float32. `benchmarks/train_models.py` measures the training
speed of whole networks.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FLOAT32, FAST = "_float32_under_autocast", "_fast_gradients"
"""Attributes that mark a module."""
COLUMNS = 3
"""Maximum number of columns of a depthwise weight whose gradient oneDNN computes in vectorised code."""


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
    _mark(net, FLOAT32)


def keeps_float32(module: nn.Module) -> bool:
    """Whether `keep_float32` was called for a module."""
    return bool(getattr(module, FLOAT32, False))


def fast_gradients(net: nn.Module) -> None:
    """Let the depthwise convolutions of a network use `DepthwiseConvolution` on CPUs; outputs stay the same to the bit.

    Gradients are those of PyTorch up to rounding. Copies of the network do so, too; compiled networks do not.
    """
    _mark(net, FAST)


def _mark(net: nn.Module, key: str) -> None:
    """Mark the depthwise convolutions, except those whose own `forward` was replaced: it would be lost."""
    for module in filter(is_depthwise, net.modules()):
        replaced = vars(module).get("forward")
        if replaced is None or getattr(replaced, "__func__", None) is _forward:
            module.forward = MethodType(_forward, module)
            setattr(module, key, True)


def _forward(module: nn.Module, inputs: Tensor) -> Tensor:
    """The module's own forward pass, as it is marked."""
    device = inputs.device.type
    own: Callable[[nn.Module, Tensor], Tensor] = type(module).forward
    if keeps_float32(module) and device != "meta" and torch.is_autocast_enabled(device):  # shapes have no autocast
        with torch.autocast(device, enabled=False):
            return _forward(module, inputs.float())
    fast = getattr(module, FAST, False) and device == "cpu" and torch.is_grad_enabled()
    if fast and not torch.compiler.is_compiling():
        with _FastGradients():
            return own(module, inputs)
    return own(module, inputs)


class _FastGradients(TorchFunctionMode):
    """Calls `DepthwiseConvolution` instead of `conv2d`, whatever a module does to its inputs before."""

    def __torch_function__(
        self, called: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function."""
        return (_convolution if called is F.conv2d else called)(*args, **(kwargs or {}))


def _convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, by `DepthwiseConvolution` where that is faster."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    wide, strided = weight.shape[3] > COLUMNS, half and _pair(stride) != (1, 1)
    depthwise = inputs.dim() == 4 and groups == inputs.shape[1] == weight.shape[0] and _pair(dilation) == (1, 1)
    if not depthwise or not (wide or strided) or isinstance(padding, str):
        return F.conv2d(inputs, weight, bias, stride, padding, dilation, groups)
    if half:
        inputs, weight = inputs.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
    result: Tensor = DepthwiseConvolution.apply(inputs, weight, bias, _pair(stride), _pair(padding))  # type: ignore[no-untyped-call]
    return result


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class DepthwiseConvolution(torch.autograd.Function):
    """(inputs, weight, bias or None, stride, padding) -> outputs; differentiable as often as convolutions are."""

    @staticmethod
    def forward(
        context: Any,
        inputs: Float[Tensor, "B C H W"],
        weight: Float[Tensor, "C 1 P Q"],
        bias: Float[Tensor, "_"] | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Float[Tensor, "B C Y X"]:
        """The convolution."""
        context.save_for_backward(inputs, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(inputs, weight, bias, stride, padding, 1, inputs.shape[1])

    @staticmethod
    def backward(context: Any, gradient: Float[Tensor, "B C Y X"]) -> tuple[Tensor | None, ...]:
        """Gradients of the five arguments; None for those that do not require one."""
        inputs, weight = context.saved_tensors
        of_inputs, of_weight, of_bias = context.needs_input_grad[:3]
        how = context.stride, context.padding
        return (
            _of_inputs(inputs, weight, gradient, *how) if of_inputs else None,
            _of_weight(inputs, weight, gradient, *how) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            None,
            None,
        )


def _of_inputs(
    inputs: Tensor, weight: Tensor, gradient: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    if stride == (1, 1) or inputs.dtype != torch.bfloat16:
        return _gradient(True, gradient, inputs, weight, stride, padding)
    return _gradient(True, gradient.float(), inputs.float(), weight.float(), stride, padding).to(inputs.dtype)


def _of_weight(
    inputs: Tensor, weight: Tensor, gradient: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Float[Tensor, "C 1 P Q"]:
    columns = weight.shape[3]
    if columns <= COLUMNS:
        return _gradient(False, gradient, inputs, weight, stride, padding)
    padded = F.pad(inputs, (padding[1], padding[1], padding[0], padding[0]))
    strips = []
    for first in range(0, columns, COLUMNS):
        some = min(COLUMNS, columns - first)
        read = padded[..., first : first + (gradient.shape[3] - 1) * stride[1] + some]
        strip = weight[..., first : first + some]
        strips.append(_gradient(False, gradient, read, strip, stride, (0, 0)))
    return torch.cat(strips, 3)


def _gradient(
    of_inputs: bool,
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """PyTorch's gradient of the inputs, else of the weight."""
    both = torch.ops.aten.convolution_backward(
        gradient,
        inputs,
        weight,
        bias_sizes=None,
        stride=stride,
        padding=padding,
        dilation=(1, 1),
        transposed=False,
        output_padding=(0, 0),
        groups=inputs.shape[1],
        output_mask=(of_inputs, not of_inputs, False),
    )
    result: Tensor = both[0 if of_inputs else 1]
    return result
