"""The plain network has one exit, and its branches are never built."""

import torch
from torch import nn

from offramp.methods import find
from offramp.net import Backbone, Head, MultiExitNet


def test_branches_are_never_built() -> None:
    def branch(backbone: Backbone, exit: int) -> nn.Module:
        raise AssertionError("a branch was built")

    stages = tuple(nn.Sequential(nn.Conv2d(2, 2, 1)) for _ in range(3))
    net = find("vanilla").build().network(lambda: Backbone(stages, Head(2, 5), (2, 4, 4)), branch)
    assert isinstance(net, MultiExitNet) and net.exits == 1
    assert net(torch.zeros(3, 2, 4, 4)).logits.shape == (1, 3, 5)
