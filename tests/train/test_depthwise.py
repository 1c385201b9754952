"""Depthwise convolutions: float32 under autocast, for them alone; gradients are the same, however they are computed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from offramp.train.depthwise import fast_gradients, has_depthwise, is_depthwise, keep_float32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 3, groups=2))


def test_which_convolutions_are_depthwise() -> None:
    assert list(map(is_depthwise, network())) == [False, True, False]
    assert has_depthwise(network()) and not has_depthwise(nn.Conv2d(1, 4, 3))


def test_depthwise_in_float32_and_the_rest_in_bf16() -> None:
    net = network()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    keep_float32(net)
    keep_float32(net)  # once is enough
    for each in (net, copy.deepcopy(net)):
        for parameter in each.parameters():
            parameter.grad = None
        inputs = torch.randn(2, 3, 5, 5)
        with torch.autocast("cpu", torch.bfloat16):
            first = each[0](inputs)
            second = each[1](first)
            third = each[2](second)
        assert [value.dtype for value in (first, second, third)] == [torch.bfloat16, torch.float32, torch.bfloat16]
        expected = nn.functional.conv2d(first.float(), each[1].weight, each[1].bias, padding=1, groups=4)
        assert torch.equal(second, expected)
        third.float().square().mean().backward()
        assert all(parameter.grad is not None for parameter in each.parameters())  # a copy trains its own weights
    assert net.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert torch.equal(net[1](first.float()), second)  # without autocast nothing changes
    with torch.autocast("cpu", torch.bfloat16):
        assert net.to("meta")(torch.empty(1, 3, 5, 5, device="meta")).shape == (1, 8, 3, 3)


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 5, "stride": (2, 1), "padding": (0, 3), "bias": False},
    {"kernel_size": (3, 7), "stride": 3, "padding": 3},
    {"kernel_size": (7, 4), "padding": (3, 2)},
    {"kernel_size": 5, "padding": "same"},
    {"kernel_size": 5, "padding": 4, "dilation": 2},
    {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
]


def both(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, groups=8, **options).to(dtype)
    fast = copy.deepcopy(plain)
    fast_gradients(fast)
    return plain, copy.deepcopy(fast)  # the copy trains its own weights


def gradients(module: nn.Module, inputs: torch.Tensor, half: bool = False) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = module(inputs)
    weights = torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)
    loss = (outputs.float() * weights).square().sum() / outputs.numel()
    return [outputs, *torch.autograd.grad(loss, [inputs, *module.parameters()])]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_fast_gradients_are_those_of_pytorch(options: dict[str, Any], half: bool) -> None:
    plain, fast = both(options)
    for side in (13, 5):
        inputs = torch.randn(4, 8, side, side).to(memory_format=torch.channels_last).requires_grad_()
        expected, got = gradients(plain, inputs, half), gradients(fast, inputs, half)
        assert torch.equal(got[0], expected[0])
        for one, other in zip(got[1:], expected[1:], strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=2e-2 if half else 1e-5, atol=1e-2 if half else 1e-6)


def test_which_convolutions_compute_gradients_in_another_way() -> None:
    wide, strided = {2, 3, 4, 5, 8}, {1}
    for number, options in enumerate(CONVOLUTIONS):
        inputs = torch.randn(2, 8, 13, 13, requires_grad=True)
        functions = []
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                functions.append(type(both(options)[1](inputs).grad_fn).__name__ == "DepthwiseConvolutionBackward")
        assert functions == [number in wide, number in wide | strided]


def test_fast_gradients_can_be_differentiated_again() -> None:
    plain, fast = both({"kernel_size": 5, "padding": 2}, torch.float64)
    inputs = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    second = []
    for module in (plain, fast):
        loss = module(inputs).square().mean()
        first = torch.autograd.grad(loss, [inputs, *module.parameters()], create_graph=True)
        total = sum(gradient.square().sum() for gradient in first)
        second.append(torch.autograd.grad(total, [inputs, *module.parameters()]))
    for one, other in zip(*second, strict=True):
        torch.testing.assert_close(one, other)


def test_without_gradients_and_when_exported_a_convolution_is_as_it_was() -> None:
    plain, fast = both({"kernel_size": 5, "padding": 2})
    inputs = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(fast(inputs), plain(inputs))
    exported = torch.export.export(fast, (inputs,))
    assert [node.target for node in exported.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]


def test_both_markings_of_a_module_hold() -> None:
    net = nn.Conv2d(8, 8, 5, groups=8)
    for mark in (fast_gradients, keep_float32, fast_gradients):
        mark(net)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.randn(1, 8, 9, 9).bfloat16())
    assert outputs.dtype == torch.float32 and "Depthwise" in type(outputs.grad_fn).__name__


def test_a_forward_that_was_replaced_is_not_lost() -> None:
    module = nn.Conv2d(4, 4, 5, groups=4)
    own = module.forward
    module.forward = lambda inputs: 2 * own(inputs)  # type: ignore[method-assign]
    inputs = torch.randn(1, 4, 6, 6)
    expected = module(inputs)
    for mark in (fast_gradients, keep_float32):
        mark(module)
        assert torch.equal(module(inputs), expected)
