"""Shared layers: strided convolutions on maps narrower than the stride."""

import forked
import pytest
import torch
from torch import nn

from offramp.layers import Conv, SmallMaps, conv


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 2, 1), (3, 4, 3), (3, 8, 5), (5, 2, 1), (3, 2, 2), (3, 2, 7)]
)
def test_the_answer_is_that_of_the_convolution(kernel: int, stride: int, size: int) -> None:
    ours = Conv(4, 6, kernel, stride)
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
            built = layer(torch.randn(4, 32, 1, 1))
        built.float().square().mean().backward()
        assert layer.weight.grad is not None
        around = layer.weight.grad.flatten(2)[:, :, [0, 1, 2, 3, 5, 6, 7, 8]]
        assert not around.any() and layer.weight.grad[:, :, 1, 1].any()


@pytest.mark.parametrize(("enters", "leaves", "size"), [(4, 8, 48), (8, 16, 64), (4, 8, 5)])
def test_a_strided_1x1_convolution_trains_without_writing_elsewhere(enters: int, leaves: int, size: int) -> None:
    """In a process of its own: where PyTorch's kernel is used for the input's gradient, the heap is damaged."""
    code = f"""
import torch
from offramp.layers import conv
torch.manual_seed(0)
layer = conv({enters}, {leaves}, 1, 2).to(memory_format=torch.channels_last)
for _ in range(30):
    inputs = torch.randn(8, {enters}, {size}, {size}).to(memory_format=torch.channels_last).requires_grad_()
    normed = torch.nn.functional.batch_norm(layer(inputs), None, None, training=True)
    torch.nn.functional.relu(normed).square().mean().backward()
exact = torch.nn.functional.conv2d(inputs.double(), layer.weight.double(), None, 2)
torch.testing.assert_close(layer(inputs).double(), exact, atol=1e-5, rtol=1e-5)
"""
    ran = forked.run_code(code)
    assert ran.returncode == 0, ran.stderr


SMALL_MAPS = [(1, 8, 8), (2, 8, 7), (1, 4, 4), (2, 8, 8), (2, 4, 4), (1, 1, 1), (2, 3, 5)]
"""Strides, height and width: answers of few pixels, and of very few."""


@pytest.mark.parametrize(("stride", "height", "width"), SMALL_MAPS)
def test_on_small_maps_a_product_has_the_derivatives_of_the_convolution(stride: int, height: int, width: int) -> None:
    inputs = torch.randn(3, 4, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    ours = SmallMaps.apply(inputs, weight, (stride, stride))
    plain = nn.functional.conv2d(inputs, weight, None, stride, 1)
    torch.testing.assert_close(ours, plain)
    pull = torch.randn_like(plain)
    for mine, theirs in zip(
        *(torch.autograd.grad(built, (inputs, weight), pull) for built in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_product_can_be_differentiated_again(stride: int) -> None:
    inputs = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda *args: SmallMaps.apply(*args, (stride, stride)), (inputs, weight))


def by_product(layer: nn.Module, inputs: torch.Tensor, low: bool = True) -> bool:
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        return "SmallMaps" in type(layer(inputs).grad_fn).__name__


def test_products_are_taken_for_weights_that_train_in_bfloat16_on_small_maps() -> None:
    inputs, layer = torch.randn(2, 4, 8, 8), Conv(4, 6, 3, bias=False)
    assert by_product(layer, inputs)
    assert not by_product(layer, inputs, low=False)
    assert not by_product(layer, torch.randn(2, 4, 9, 8)), "too many pixels"
    assert by_product(Conv(4, 6, 3, 2, bias=False), torch.randn(2, 4, 16, 15)), "it is the answer's pixels that count"
    assert not by_product(Conv(4, 6, 1, bias=False), inputs)
    assert not by_product(Conv(4, 6, 3, groups=2, bias=False), inputs)
    with torch.no_grad():
        assert not by_product(layer, inputs)
    assert not by_product(layer.requires_grad_(False), inputs.requires_grad_())


@pytest.mark.parametrize("size", [8, 4])
def test_what_is_unusual_is_answered_as_by_the_convolution(size: int) -> None:
    layer = Conv(4, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(0, 4, size, size)).shape == (0, 6, size, size)
        assert layer(torch.randn(4, size, size)).shape == (6, size, size)
        assert layer.double()(torch.randn(2, 4, size, size).double()).dtype == torch.float64
        nn.functional.relu(layer.float()(torch.randn(2, 4, size, size)), inplace=True).sum().backward()
    with pytest.raises(ValueError, match="needs an odd one, got 2"):
        Conv(4, 6, 2)


def test_products_are_compiled_as_one_graph() -> None:
    """In a process of its own: the checks of shapes in tests would break the graph."""
    code = """
import torch
from torch import nn
from offramp.layers import Conv
torch.manual_seed(0)
net = nn.Sequential(Conv(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Conv(4, 4, 3, 2))
compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=False)
for size in (8, 4):
    inputs = torch.randn(3, 4, size, size)
    gradients = []
    for run in (net, compiled):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            run(inputs).float().square().mean().backward()
        gradients.append([part.grad.clone() for part in net.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.05, atol=0.005)
"""
    ran = forked.run_code(code)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 8), (3, 2, 8), (3, 1, 4), (1, 2, 8)])
def test_in_bfloat16_gradients_are_those_of_the_convolution_in_its_order_of_memory(
    kernel: int, stride: int, size: int, bias: bool
) -> None:
    layer = Conv(32, 48, kernel, stride, bias=bias).to(memory_format=torch.channels_last)
    inputs = torch.randn(16, 32, size, size).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        built = layer(inputs)
    pull = torch.randn_like(built)
    built.backward(pull)
    assert built.dtype == torch.bfloat16 and built.is_contiguous(memory_format=torch.channels_last)
    assert inputs.grad is not None and inputs.grad.is_contiguous(memory_format=torch.channels_last)
    exact = [part.detach().double().requires_grad_() for part in (inputs, *layer.parameters())]
    answer = nn.functional.conv2d(*exact, *([] if bias else [None]), stride, kernel // 2)
    answer.backward(pull.double())
    assert (built.double() - answer).norm() < 0.01 * answer.norm()
    for mine, theirs in zip((inputs.grad, *(part.grad for part in layer.parameters())), exact, strict=True):
        assert mine is not None and theirs.grad is not None
        assert (mine.double() - theirs.grad).norm() < 0.01 * theirs.grad.norm()
