"""The moving average is that of PyTorch, to the bit, and stored alike."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from offramp.train.moving_average import MovingAverage


def test_it_is_the_averaged_model_of_pytorch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours = MovingAverage(net, 0.9)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(5):
        net(torch.randn(6, 3))
        with torch.no_grad():
            net[0].weight.add_(torch.randn(4, 3))
        ours.update(net)
        theirs.update_parameters(net)
        if step == 2:  # as at a resume
            ours = copy.deepcopy(ours)
            ours.restore(theirs.state_dict())
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in state)
    ours.restart()
    ours.update(net)
    assert torch.equal(ours.module[0].weight, net[0].weight)
