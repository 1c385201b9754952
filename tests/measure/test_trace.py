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
    result = trace(net, batches(size), "cal")
    torch.testing.assert_close(result.logits, net.eval()(INPUTS).logits, rtol=0, atol=1e-5)
    assert result.logits.shape == (2, N, 5) and result.split == "cal"
    assert result.labels is not None and torch.equal(result.labels, SAMPLES.labels)
    assert torch.equal(result.ids, SAMPLES.ids)


def test_the_network_is_in_eval_mode_and_its_statistics_stay() -> None:
    net = network().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = trace(net, batches(4), "val")
    assert not net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not result.logits.requires_grad
    assert torch.equal(result.logits, trace(net, batches(4), "val").logits)


def test_logits_are_kept_in_float32() -> None:
    def half(inputs: torch.Tensor) -> ExitOutputs:
        return ExitOutputs(torch.full((2, len(inputs), 5), 1 / 3, dtype=torch.bfloat16), (), ())

    result = trace(half, batches(4), "test")
    assert result.logits.dtype == torch.float32
    assert result.logits.unique().tolist() == [torch.tensor(1 / 3).bfloat16().item()]


def test_progress_is_told_in_samples() -> None:
    told: list[int] = []
    trace(network(), batches(4), "test", told.append)
    assert told == [4, 4, 3]


def test_a_split_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match="the split 'cal' has no samples to trace"):
        trace(network(), [], "cal")
