"""ONE: what branches and trunk are, where the gradients go, and what is refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.methods import find
from offramp.multi_net import GatedFan
from offramp.net import Backbone, Head, MultiExitNet
from offramp.outputs import Batch

CLASSES = 4


def backbone() -> Backbone:
    widths = (1, 3, 4, 5)
    stages = tuple(
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)
    )
    return Backbone(stages, Head(5, CLASSES), (1, 4, 4))


def fan(**hyper: Any) -> GatedFan:
    torch.manual_seed(0)
    built = find("one").build(**hyper).network(backbone, lambda trunk, exit: None)
    assert isinstance(built, GatedFan)
    return built


def batch() -> Batch:
    inputs = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return Batch(inputs, torch.arange(8) % CLASSES, torch.arange(8))


def terms(net: nn.Module, progress: float = 0.5, **hyper: Any) -> dict[str, Tensor]:
    result: dict[str, Tensor] = find("one").build(**hyper).objective(net(batch().inputs), batch(), progress)
    return result


@pytest.mark.parametrize(("stages", "shared", "separate", "width"), [(1, 6, 3, 4), (2, 3, 6, 3)])
def test_the_last_stages_are_copied(stages: int, shared: int, separate: int, width: int) -> None:
    net = fan(stages=stages, branches=2)
    assert len(net.trunk) == shared and [len(branch.body) for branch in net.ensemble.branches] == [separate, separate]
    assert net.ensemble.gate.linear.in_features == width
    first, second = (branch.state_dict() for branch in net.ensemble.branches)
    assert not torch.equal(first["body.0.weight"], second["body.0.weight"])


def test_the_imitation_pulls_the_branches_but_neither_the_ensemble_nor_its_gate() -> None:
    net = fan()
    terms(net)["kl"].backward()
    assert all(part.grad is None or not part.grad.any() for part in net.ensemble.gate.parameters())
    assert all(branch.head.classifier.weight.grad.any() for branch in net.ensemble.branches)
    assert net.trunk[0].weight.grad.any()


def test_labels_reach_the_gate_through_the_ensemble() -> None:
    net = fan()
    terms(net)["ce"].backward()
    assert net.ensemble.gate.linear.weight.grad.any()


def test_the_imitation_rises_and_then_stays() -> None:
    net = fan()
    early, later, full, paper = (
        terms(net, progress, ramp_up=share)["kl"].item()
        for progress, share in ((0.0, 0.25), (0.125, 0.25), (0.5, 0.25), (0.0, 0.0))
    )
    assert early == pytest.approx(full * 2.718281828**-5) and early < later < full == paper


def test_the_ensemble_alone_learns_from_the_labels_alone() -> None:
    torch.manual_seed(0)
    alone = find("one").build(form="ensemble").network(backbone, lambda trunk, exit: None)
    assert isinstance(alone, MultiExitNet) and alone.exits == 1
    assert list(terms(alone, form="ensemble")) == ["ce"]


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"branches": 1}, "branches must be at least 2, got 1"),
        ({"stages": 0}, "stages must be at least 1, got 0"),
        ({"stages": 3}, "method.stages must be below 3, the stages of the network, got 3"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"floor": -1.0}, "floor must be at least 0"),
        ({"ramp_up": 1.5}, r"ramp_up must be in \[0, 1\]"),
    ],
)
def test_values_that_make_no_sense(hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fan(**hyper)


def test_a_gate_needs_something_to_pool() -> None:
    flat = Backbone(
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), nn.Sequential(nn.Linear(3, 5))), Head(5, CLASSES), (1, 4, 4)
    )
    with pytest.raises(ValueError, match=r"needs maps or tokens before the branches, got shape \(1, 3\)"):
        find("one").build().network(lambda: flat, lambda trunk, exit: None)
