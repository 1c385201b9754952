"""Layers that networks and exits are both made of, initialised when they are made."""

from torch import Tensor, nn
from torch.nn import functional as F


def initialise(module: nn.Module) -> None:
    """Convolutions kaiming normal (fan out), batch norms 1 and 0, as in He et al. 2016 and the papers' code.

    Biases of convolutions and classifiers keep PyTorch's default. Every block calls this in its constructor, so that
    `offramp.net.fresh` and branches get the same start as the trunk.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


class StridedConv(nn.Conv2d):
    """A convolution that takes no longer steps than its maps are wide; the answer is the same.

    In bfloat16 on a CPU, PyTorch leaves parts of the weight's gradient uninitialised where maps are narrower than the
    stride (seen in 2.13: 3×3 with stride 2 on 1×1 maps, which digits end in). The gradient of the input of a 1×1
    convolution with stride 2 and few channels writes outside its memory there (seen in 2.13: 4 to 8 channels, 48×48,
    channels last): where one is wanted, the pixels that count are taken first. Kernel odd, padding half of it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, enters, H, W) -> (B, leaves, ⌈H/stride⌉, ⌈W/stride⌉)."""
        strides = tuple(min(stride, size) for stride, size in zip(self.stride, input.shape[-2:], strict=True))
        if self.kernel_size == (1, 1) and input.requires_grad and input.device.type == "cpu":
            input, strides = input[..., :: strides[0], :: strides[1]], (1, 1)
        return F.conv2d(input, self.weight, self.bias, strides, self.padding, self.dilation, self.groups)


def conv(enters: int, leaves: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size: (B, enters, H, W) -> (B, leaves, H', W')."""
    kind = nn.Conv2d if stride == 1 else StridedConv
    return kind(enters, leaves, kernel, stride, kernel // 2, bias=False)


def conv_norm_relu(enters: int, leaves: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    return [conv(enters, leaves, kernel, stride), nn.BatchNorm2d(leaves), nn.ReLU(inplace=True)]


def norm_relu(width: int) -> nn.Sequential:
    """Batch norm and ReLU: what closes a pre-activation network, and each of its exits."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
