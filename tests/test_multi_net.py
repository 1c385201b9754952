"""Several networks as one: outputs of a cohort and of a fan, the gate, and the plain networks that come out of them."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from offramp.multi_net import Cohort, Gate, GatedEnsemble, GatedFan, gated, single
from offramp.net import Backbone, Branch, Head, MultiExitNet, attach, plain, segments

CLASSES = 5


def backbone(widths: tuple[int, ...] = (3, 4, 6)) -> Backbone:
    stages = tuple(
        nn.Sequential(nn.Conv2d(enters, leaves, 3, padding=1), nn.BatchNorm2d(leaves), nn.ReLU())
        for enters, leaves in pairwise(widths)
    )
    return Backbone(stages, Head(widths[-1], CLASSES), (3, 8, 8))


def cohort() -> Cohort:
    torch.manual_seed(0)
    return Cohort([plain(backbone()), plain(backbone((3, 5, 7)))])


def fan(branches: int = 3) -> GatedFan:
    torch.manual_seed(0)
    ends = [Branch(backbone().stages[1], Head(6, CLASSES)) for _ in range(branches)]
    return GatedFan(backbone().stages[0], GatedEnsemble(ends, Gate(4, branches)))


def images(samples: int = 6) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_cohort_answers_with_every_network() -> None:
    net = cohort().eval()
    outputs = net(images())
    assert outputs.logits.shape == (2, 6, CLASSES) and net.exits == 2
    assert [feature.shape[1] for feature in outputs.features] == [6, 7]
    for number in range(2):
        assert torch.equal(net.deploy(number)(images()).logits[0], outputs.logits[number])
        assert torch.equal(net(images(), only=number).logits[0], outputs.logits[number])
    assert net.names == ("network 1", "network 2")


def test_a_network_of_a_cohort_gets_gradients_from_its_own_answer_only() -> None:
    net = cohort()
    net(images()).logits[0].sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in net.deploy(0).branches.parameters())
    assert all(part.grad is None or not part.grad.any() for part in net.deploy(1).parameters())


def test_a_cohort_is_of_two_plain_networks_or_more() -> None:
    with pytest.raises(ValueError, match="a cohort needs at least 2 networks, got 1"):
        Cohort([plain(backbone())])
    early = attach(backbone(), lambda trunk, exit: Branch(nn.Identity(), Head(4, CLASSES)))
    with pytest.raises(ValueError, match=r"networks without early exits, got \[1, 2\] exits"):
        Cohort([plain(backbone()), early])


def test_a_fan_ends_in_its_gated_ensemble() -> None:
    net = fan().eval()
    outputs = net(images())
    assert outputs.logits.shape == (4, 6, CLASSES) and net.exits == 4
    weights, pooled, _ = net.ensemble.gate(net.trunk(images()))
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    expected = sum(weights[:, k, None] * outputs.logits[k] for k in range(3))
    torch.testing.assert_close(outputs.logits[3], expected)
    assert torch.equal(outputs.features[3], pooled) and len(outputs.maps) == 4
    assert net.names == ("branch 1", "branch 2", "branch 3", "gated ensemble")


@pytest.mark.parametrize("output", range(4))
def test_a_fan_deploys_as_a_plain_network(output: int) -> None:
    net = fan().eval()
    taken = net.deploy(output).eval()
    assert isinstance(taken, MultiExitNet) and taken.exits == 1
    assert torch.equal(taken(images()).logits[0], net(images()).logits[output])
    (segment,) = segments(taken)
    assert torch.equal(segment(images())[2], net(images()).logits[output])
    if output < 3:
        assert taken.state_dict().keys() == plain(backbone()).state_dict().keys()


def test_the_gate_takes_the_coarsest_scale_and_tokens() -> None:
    gate = Gate(4, 2).eval()
    state = images()[:, :1].expand(-1, 4, -1, -1)
    assert torch.equal(gate((images(), state))[0], gate(state)[0])
    tokens = state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(gate(tokens)[0], gate(state)[0])


def test_the_ensemble_is_computed_in_float32_and_answered_in_the_precision_of_the_branches() -> None:
    logits = torch.randn(3, 4, CLASSES, generator=torch.Generator().manual_seed(2)).bfloat16()
    weights = torch.full((4, 3), 1 / 3)
    result = gated(logits, weights)
    assert result.dtype == torch.bfloat16 and torch.equal(result, (logits.float() / 3).sum(0).bfloat16())


def test_single_networks_share_the_weights_of_the_whole() -> None:
    alone = plain(backbone())
    assert single(alone) == [alone]
    assert [len(single(net)) for net in (cohort(), fan(), fan().deploy(3))] == [2, 3, 3]
    for net in (cohort(), fan(), fan().deploy(3)):
        with torch.no_grad():
            for part in single(net):
                part.branches[-1].head.classifier.bias.fill_(7.0)
        biases = [value for name, value in net.state_dict().items() if name.endswith("classifier.bias")]
        assert biases and all((bias == 7.0).all() for bias in biases)
