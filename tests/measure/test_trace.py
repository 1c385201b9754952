"""Traces: the logits of every exit, in the order of the split, however the batches are cut."""

import pytest
import torch
from torch import nn

from offramp.measure.trace import trace
from offramp.net import Branch, Head, MultiExitNet
from offramp.outputs import Batch, ExitOutputs

N = 11
INPUTS = torch.randn(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SAMPLES = Batch(INPUTS, torch.arange(N) % 5, torch.arange(N) + 100)


def network() -> MultiExitNet:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout()) for _ in range(2)]
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(3, 5)) for _ in range(2)])


def batches(size: int) -> list[Batch]:
    return [Batch(*(part[rows] for part in SAMPLES)) for rows in torch.arange(N).split(size)]


@pytest.mark.parametrize("size", [1, 4, N])
def test_everything_comes_in_the_order_of_the_split(size: int) -> None:
    net = network()
    found = trace(net, batches(size), "cal")
    torch.testing.assert_close(found.logits, net.eval()(INPUTS).logits, rtol=0, atol=1e-5)
    assert found.logits.shape == (2, N, 5) and found.split == "cal"
    assert found.labels is not None and torch.equal(found.labels, SAMPLES.labels)
    assert torch.equal(found.ids, SAMPLES.ids)


def test_the_network_is_in_eval_mode_and_its_statistics_stay() -> None:
    net = network().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = trace(net, batches(4), "val")
    assert not net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not found.logits.requires_grad
    assert torch.equal(found.logits, trace(net, batches(4), "val").logits)


def test_logits_are_kept_in_float32() -> None:
    def half(inputs: torch.Tensor) -> ExitOutputs:
        return ExitOutputs(torch.full((2, len(inputs), 5), 1 / 3, dtype=torch.bfloat16), (), ())

    found = trace(half, batches(4), "test")
    assert found.logits.dtype == torch.float32
    assert found.logits.unique().tolist() == [torch.tensor(1 / 3).bfloat16().item()]


def test_progress_is_told_in_samples() -> None:
    told: list[int] = []
    trace(network(), batches(4), "test", told.append)
    assert told == [4, 4, 3]


def test_a_split_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match="the split 'cal' has no samples to trace"):
        trace(network(), [], "cal")
