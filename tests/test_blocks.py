"""Shared layers: strided convolutions on maps narrower than the stride."""

import pytest
import torch
from torch import nn

from offramp.blocks import StridedConv, conv


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 2, 1), (3, 4, 3), (3, 8, 5), (5, 2, 1), (3, 2, 2), (3, 2, 7)]
)
def test_the_answer_is_that_of_the_convolution(kernel: int, stride: int, size: int) -> None:
    ours = StridedConv(4, 6, kernel, stride, kernel // 2)
    plain = nn.Conv2d(4, 6, kernel, stride, kernel // 2)
    plain.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, 4, size, size + 1)
    torch.testing.assert_close(ours(inputs), plain(inputs))


def test_bfloat16_gradients_hold_nothing_but_gradients() -> None:
    """On 1×1 maps only the middle of a 3×3 kernel sees data: the rest of the gradient is 0, not old memory."""
    for _ in range(10):
        layer = conv(32, 32, 3, 2)
        dirt = [torch.full((96, 96), float("nan")) for _ in range(20)]
        del dirt
        with torch.autocast("cpu", torch.bfloat16):
            made = layer(torch.randn(4, 32, 1, 1))
        made.float().square().mean().backward()
        assert layer.weight.grad is not None
        around = layer.weight.grad.flatten(2)[:, :, [0, 1, 2, 3, 5, 6, 7, 8]]
        assert not around.any() and layer.weight.grad[:, :, 1, 1].any()
