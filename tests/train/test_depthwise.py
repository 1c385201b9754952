"""Depthwise convolutions compute in float32 under autocast: they alone, copies of them too, gradients included."""

import copy

import torch
from torch import nn

from offramp.train.depthwise import has_depthwise, is_depthwise, keep_float32


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
