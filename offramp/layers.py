"""Layers that networks and exits are both made of, initialised when they are made."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


def initialise(module: nn.Module) -> None:
    """Convolutions kaiming normal (fan out), batch norms 1 and 0, as in He et al. 2016 and the papers' code.

    Biases of convolutions and classifiers keep PyTorch's default. Every block calls this in its constructor, so that
    `offramp.net.fresh` and branches get the same start as the trunk.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


SMALL, TINY = 64, 16
"""Output pixels: up to SMALL the weight's gradient is one matrix product, up to TINY the whole convolution is."""


class Conv(nn.Conv2d):
    """A convolution with an odd kernel, padded by half of it, around what PyTorch's CPU kernels do badly or wrongly.

    The output is that of `nn.Conv2d`. Seen in PyTorch 2.13:

    - In bfloat16, parts of the weight's gradient stay uninitialised where maps are narrower than the stride (3×3 with
      stride 2 on 1×1 maps, which digits end in): no longer steps are taken than the maps are wide.
    - The gradient of the input of a 1×1 convolution with stride 2 and few channels writes outside its memory (4 to 8
      channels, 48×48, channels last): where one is wanted, the pixels that count are taken first.
    - In bfloat16, the weight's gradient on small maps takes up to five times as long as the same by one matrix product
      (512 channels on 4×4 maps; `benchmarks/train_speed.py` is where it counts).

    Args:
        enters, leaves: channels; kernel: its height and width; groups, bias: as of `nn.Conv2d`.
    Raises:
        ValueError: if the kernel is even.
    """

    def __init__(
        self, enters: int, leaves: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = True
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"a convolution that is padded by half its kernel needs an odd one, got {kernel}")
        super().__init__(enters, leaves, kernel, stride, kernel // 2, groups=groups, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights, unless they are on the meta device, where that takes longer than all else."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """(B, enters, H, W) -> (B, leaves, ⌈H/stride⌉, ⌈W/stride⌉)."""
        strides = self.stride
        if strides != (1, 1):
            strides = min(strides[0], input.shape[-2]), min(strides[1], input.shape[-1])
        on_cpu = input.device.type == "cpu"
        if on_cpu and self.kernel_size == (1, 1) and strides != (1, 1) and input.requires_grad:
            # pooling over single pixels; slicing would turn the gradient's channels_last around
            input, strides = F.avg_pool2d(input, 1, strides), (1, 1)
        if on_cpu and torch.is_grad_enabled() and _in_bfloat16() and self._by_product(input, strides):
            outputs: Tensor = SmallMaps.apply(input.bfloat16(), self.weight.bfloat16(), strides)  # type: ignore[no-untyped-call]
            return outputs if self.bias is None else outputs + self.bias.bfloat16()[:, None, None]
        return F.conv2d(input, self.weight, self.bias, strides, self.padding, self.dilation, self.groups)

    def _by_product(self, input: Tensor, strides: tuple[int, ...]) -> bool:
        """Whether a gradient is wanted of a weight that is no 1×1 one, for small maps."""
        return (
            self.weight.requires_grad
            and self.kernel_size != (1, 1)
            and self.groups == 1
            and input.dim() == 4
            and input.dtype != torch.float64  # which autocast leaves alone
            and math.prod(_pixels(input, strides)) <= SMALL
        )


def _in_bfloat16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _pixels(input: Tensor, strides: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the output."""
    return -(-input.shape[2] // strides[0]), -(-input.shape[3] // strides[1])


class SmallMaps(torch.autograd.Function):
    """A convolution, padded by half its odd kernel, whose weight's gradient is one matrix product over all pixels."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, strides: tuple[int, int]) -> Tensor:
        """(B, enters, H, W), (leaves, enters, k, k) -> (B, leaves, ⌈H/stride⌉, ⌈W/stride⌉)."""
        outputs = _convolved(input, weight, strides)
        # The product is a view, which must not be changed in place (a ReLU does) outside of the Function.
        return outputs.clone() if _is_tiny(input, strides) else outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """What the derivative needs."""
        ctx.strides = inputs[2]
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """(B, leaves, H', W') -> gradients of the input and the weight."""
        input, weight = ctx.saved_tensors
        to_input = None
        if ctx.needs_input_grad[0] and ctx.strides == (1, 1):
            to_input = _convolved(gradient, weight.flip(2, 3).transpose(0, 1), ctx.strides)
        elif ctx.needs_input_grad[0]:
            to_input = conv2d_input(input.shape, weight, gradient, ctx.strides, _padding(weight))  # type: ignore[no-untyped-call]
        return to_input, _weight_gradient(input, weight, gradient, ctx.strides), None


def _convolved(input: Tensor, weight: Tensor, strides: tuple[int, int]) -> Tensor:
    """The convolution, as a matrix product if the output has very few pixels."""
    if not _is_tiny(input, strides):
        return F.conv2d(input, weight, None, strides, _padding(weight))
    outputs = _patches(input, weight, strides) @ weight.permute(2, 3, 1, 0).flatten(0, 2)
    return outputs.view(len(input), *_pixels(input, strides), len(weight)).permute(0, 3, 1, 2)


def _is_tiny(input: Tensor, strides: tuple[int, int]) -> bool:
    return math.prod(_pixels(input, strides)) <= TINY


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _weight_gradient(input: Tensor, weight: Tensor, gradient: Tensor, strides: tuple[int, int]) -> Tensor:
    """sum over samples and pixels of gradient x the patch of the input that the pixel sees: (leaves, enters, k, k)."""
    leaves, enters, high, wide = weight.shape
    by_pixel = gradient.permute(0, 2, 3, 1).reshape(-1, leaves)
    gradients = by_pixel.t() @ _patches(input, weight, strides)
    return gradients.view(leaves, high, wide, enters).permute(0, 3, 1, 2)


def _patches(input: Tensor, weight: Tensor, strides: tuple[int, int]) -> Tensor:
    """The input patch of every output pixel: (B H' W', k k enters)."""
    _, enters, high, wide = weight.shape
    up, left = _padding(weight)
    padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, left, left, up, up))
    seen = padded.unfold(1, high, strides[0]).unfold(2, wide, strides[1])  # (B, H', W', enters, k, k)
    return seen.permute(0, 1, 2, 4, 5, 3).reshape(-1, high * wide * enters)


def conv(enters: int, leaves: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size: (B, enters, H, W) -> (B, leaves, H', W')."""
    return Conv(enters, leaves, kernel, stride, bias=False)


def conv_norm_relu(enters: int, leaves: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    return [conv(enters, leaves, kernel, stride), nn.BatchNorm2d(leaves), nn.ReLU(inplace=True)]


def norm_relu(width: int) -> nn.Sequential:
    """Batch norm and ReLU: what closes a pre-activation network, and each of its exits."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
