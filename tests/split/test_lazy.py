"""Lazy evaluation: the same logits for fewer operations, and networks that stay as they are."""

import copy

import pytest
import torch
from torch import Tensor, nn

from offramp import branches, models
from offramp.measure import cost
from offramp.net import MultiExitNet, attach, segments
from offramp.split.lazy import lazy

pytestmark = pytest.mark.usefixtures("traceable_msdnet")


def _msdnet(setting: str) -> tuple[MultiExitNet, tuple[int, int, int]]:
    torch.manual_seed(0)
    backbone = models.find("msdnet").build("msdnet", classes=10, setting=setting)
    return attach(backbone, lambda trunk, exit: branches.find("own").build(trunk, exit, 10)).eval(), backbone.shape


@pytest.mark.parametrize("setting, saved", [("hdkd-cifar-4", 0.129), ("hdkd-imagenet-23", 0.248)])
def test_msdnet_computes_fine_scales_only_for_exits_that_need_them(setting: str, saved: float) -> None:
    """The share of exit 1's operations that MSDNet's own code computes without need; logits equal to the bit."""
    net, shape = _msdnet(setting)
    running = lazy(net, shape)
    before, after = cost.macs(net, shape), cost.macs(running, shape)
    assert 1 - after[0] / before[0] == pytest.approx(saved, abs=5e-4)
    assert all(new <= old for old, new in zip(before, after, strict=True))
    images = torch.randn(2, *shape)
    with torch.inference_mode():
        assert torch.equal(running(images).logits, net(images).logits)


def test_samples_that_leave_take_their_rows_of_every_tensor() -> None:
    net, shape = _msdnet("hdkd-cifar-4")
    images = torch.randn(5, *shape)
    first, *others = segments(lazy(net, shape), [True, False, True, True])
    with torch.inference_mode():
        state, carry, _ = first(images)
        assert isinstance(state, tuple) and all(len(tensor) == 5 for tensor in state)
        stay = torch.tensor([0, 3])
        state = tuple(tensor[stay] for tensor in state)
        for segment, exit in zip(others, (2, 3), strict=True):
            state, carry, logits = segment(state, carry)
            torch.testing.assert_close(logits, net(images).logits[exit][stay], rtol=1e-5, atol=1e-5)


def test_the_network_keeps_its_weights_modes_and_gradients() -> None:
    net, shape = _msdnet("hdkd-cifar-4")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    running = lazy(net, shape)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    ours = {id(parameter) for parameter in net.parameters()}
    assert {id(parameter) for parameter in running.parameters()} <= ours  # nothing is copied
    images = torch.randn(1, *shape)
    with torch.inference_mode():
        expected = running(images).logits
        assert torch.equal(copy.deepcopy(running)(images).logits, expected)


class Pyramid(nn.Module):
    """A stage of two maps: a fine one, and a coarse one that does not depend on the stage's fine convolution."""

    def __init__(self, hazard: bool = False, branching: bool = False) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.again = nn.Conv2d(4, 4, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.hazard, self.branching = hazard, branching

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs = state[0] if isinstance(state, tuple) else state
        fine = self.fine(inputs)
        if self.branching and fine.sum() > 1e9:
            fine = fine + 1
        coarse = self.coarse(inputs)
        changed = self.relu(coarse)
        return self.again(fine), changed + coarse if self.hazard else changed


class Coarse(nn.Module):
    """An exit on the coarse map alone."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, state: tuple[Tensor, ...], carry: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        pooled = state[-1].mean((2, 3))
        return self.classifier(pooled), pooled, state[-1], carry  # type: ignore[return-value]


def _pyramids(**options: bool) -> MultiExitNet:
    torch.manual_seed(0)
    return MultiExitNet([Pyramid(**options) for _ in range(3)], [Coarse() for _ in range(3)]).eval()


def test_any_network_of_several_maps() -> None:
    """Two convolutions of every stage are postponed; those of the last stage are never computed."""
    net, shape = _pyramids(), (4, 8, 8)
    running = lazy(net, shape)
    fine, coarse, exit = 2 * 4 * 4 * 9 * 64, 4 * 4 * 9 * 16, 4 * 3
    assert cost.macs(running, shape) == [coarse + exit, fine + 2 * coarse + exit, 2 * fine + 3 * coarse + exit]
    images = torch.randn(3, *shape)
    with torch.inference_mode():
        assert torch.equal(running(images).logits, net(images).logits)


@pytest.mark.parametrize("options", [{"hazard": True}, {"branching": True}])
def test_networks_that_stay_as_they_are(options: dict[str, bool]) -> None:
    """A tensor that is changed in place while others read it, and a condition on values."""
    net = _pyramids(**options)
    assert lazy(net, (4, 8, 8)) is net


def test_networks_of_single_maps_stay_as_they_are() -> None:
    backbone = models.find("resnet18").build("resnet18", classes=10, width=4)
    net = attach(backbone, lambda trunk, exit: branches.find("linear").build(trunk, exit, 10)).eval()
    assert lazy(net, (3, 32, 32)) is net
