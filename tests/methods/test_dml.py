"""DML beside networks with an optimiser each: simultaneous and alternating updates, statistics, what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.methods import find
from offramp.multi_net import Cohort
from offramp.net import Backbone, Head, share
from offramp.outputs import Batch
from offramp.step import StepContext, plain_step
from offramp.train.device import make_fabric
from offramp.train.recipe import Recipe

CLASSES, SAMPLES, STEPS = 4, 6, 3


def backbone() -> Backbone:
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((1, 3), (3, 5))]
    return Backbone(tuple(stages), Head(5, CLASSES), (1, 4, 4))


def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(5)
    labels = torch.arange(SAMPLES) % CLASSES
    return [Batch(torch.randn(SAMPLES, 1, 4, 4, generator=draw), labels, torch.arange(SAMPLES)) for _ in range(STEPS)]


def cohort(networks: int) -> Cohort:
    torch.manual_seed(0)
    built = find("dml").build(networks=networks).network(backbone, lambda trunk, exit: None)
    assert isinstance(built, Cohort)
    return built.train()


def loss_of(member: int, logits: list[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """CE_k + T^2/(K-1) sum KL(sg z_l -> z_k), written with PyTorch's own functions."""
    student = F.log_softmax(logits[member] / temperature, 1)
    imitated = [
        F.kl_div(student, F.softmax(other.detach() / temperature, 1), reduction="batchmean")
        for number, other in enumerate(logits)
        if number != member
    ]
    return F.cross_entropy(logits[member], labels) + temperature**2 * torch.stack(imitated).mean()


def by_hand(nets: list[nn.Module], alternating: bool, temperature: float) -> list[float]:
    """Train these networks with an optimiser each; the losses of every step, summed over the networks."""
    optimizers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in nets]
    losses = []
    for batch in batches():
        logits = [net(batch.inputs).logits[0] for net in nets]
        total = 0.0
        for number, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            loss = loss_of(number, logits, batch.labels, temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            if alternating:
                again = copy.deepcopy(net)  # its statistics are thrown away
                logits[number] = again(batch.inputs).logits[0].detach()
        losses.append(total)
    return losses


@pytest.mark.parametrize(("updates", "networks"), [("simultaneous", 3), ("alternating", 2), ("alternating", 3)])
def test_it_trains_as_networks_with_an_optimiser_each(updates: Any, networks: int) -> None:
    net, hand = cohort(networks), cohort(networks)
    method = find("dml").build(networks=networks, updates=updates, temperature=2.0)
    fabric = make_fabric(Recipe(device="cpu", precision="32"))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    parts = StepContext(fabric, net, method.objective, optimizer, share, bare=net)
    parts.net, parts.optimizer = fabric.setup(net, optimizer)
    result = [
        sum(term.item() for term in (method.step or plain_step)(parts, batch, 0.0).values()) for batch in batches()
    ]
    expected = by_hand([hand.deploy(number) for number in range(networks)], updates == "alternating", 2.0)
    assert result == pytest.approx(expected, rel=1e-5)
    for name, tensor in hand.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_alternating_is_another_way_than_simultaneous() -> None:
    nets = [[cohort(2).deploy(number) for number in range(2)] for _ in range(2)]
    first, second = (by_hand(both, alternating, 2.0) for both, alternating in zip(nets, (False, True), strict=True))
    assert abs(first[-1] - second[-1]) > 1e-4


def test_networks_of_one_kind_start_differently() -> None:
    net = cohort(2)
    weights = [net.deploy(number).state_dict()["stages.0.0.weight"] for number in range(2)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"networks": 1}, r"needs at least 2 of them, got 1: raise method.networks, or name several"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"weight": -1.0}, "weight must be at least 0"),
    ],
)
def test_values_that_make_no_sense(hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find("dml").build(**hyper)
