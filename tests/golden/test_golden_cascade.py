"""Worked examples of exits that see each other: ZTW's cascade and ensembles, IMTA's teacher; to 1e-8 in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.methods._cascade import Concatenated, cascaded
from offramp.methods.ofa import OneForAll
from offramp.methods.vanilla import final_exit
from offramp.methods.ztw import Ensemble, Mixture, answer_together, early_exits
from offramp.net import Branch, MultiExitNet, segments
from offramp.outputs import Batch, ExitOutputs

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
LABELS = torch.tensor(GOLDEN["_inputs"]["y"])
BATCH = Batch(torch.zeros(3, 1), LABELS, torch.arange(3))
CLASSES, WIDTH = 5, 6


def logits() -> Tensor:
    return torch.tensor(GOLDEN["_inputs"]["z"], dtype=torch.float64)


class Seen(nn.Module):
    """A head whose feature is given: a linear layer without bias on it."""

    def __init__(self, feature: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.feature, self.weight = feature, nn.Parameter(weight)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.feature @ self.weight.T, self.feature, self.feature


class Emit(nn.Module):
    """A head that answers what it is given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits, state, state


def chain(branches: list[nn.Module]) -> MultiExitNet:
    return MultiExitNet([nn.Identity() for _ in branches], branches)


def linked(detach: bool, norm: bool) -> tuple[MultiExitNet, list[tuple[nn.Parameter, ...]]]:
    """W_k[c,j] = .3 cos(1+2k+3c+5j) on [F_k ; N(z_{k-1})], in two parts, the branch's and the link's."""
    k, c = torch.arange(3, dtype=torch.float64), torch.arange(CLASSES, dtype=torch.float64)
    j = torch.arange(WIDTH + CLASSES, dtype=torch.float64)
    whole = 0.3 * torch.cos(1 + 2 * k[:, None, None] + 3 * c[:, None] + 5 * j)
    features = torch.tensor(GOLDEN["_inputs"]["F"], dtype=torch.float64)
    heads = [Seen(features[index], whole[index, :, :WIDTH].clone()) for index in range(3)]
    links = [Concatenated(CLASSES, WIDTH, norm=norm).double() for _ in range(2)]
    for index, link in enumerate(links, 1):
        link.classifier.weight.data.copy_(whole[index, :, WIDTH:])
    branches = [Branch(nn.Identity(), head) for head in [*heads, Emit(logits()[-1])]]
    weights = [(heads[0].weight,), *((head.weight, link.classifier.weight) for head, link in zip(heads[1:], links))]
    return chain(cascaded(branches, links, detach=detach)), weights


@pytest.mark.parametrize("entry", ["detach", "nodetach", "detach_layernorm"])
def test_cascade(entry: str) -> None:
    golden = GOLDEN[f"ztw_cascade_{entry}"]
    net, weights = linked(detach=entry != "nodetach", norm=entry.endswith("norm"))
    outputs = net(torch.zeros(3, 1))
    loss = early_exits(outputs, BATCH, 0.0)["early"]
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss_sum"], rel=1e-8)
    assert cross_entropy(outputs.logits[:-1], LABELS).tolist() == pytest.approx(golden["per_head"], rel=1e-8)
    norms = [torch.cat([part.grad for part in ours if part.grad is not None], 1).norm().item() for ours in weights]
    assert norms == pytest.approx(golden["gW"], rel=1e-8)
    assert outputs.logits[2, 0].tolist() == pytest.approx(golden["z_head3_b0"], rel=1e-8)
    torch.testing.assert_close(outputs.logits[-1], logits()[-1], rtol=0, atol=0)


def together(switched: bool = True) -> tuple[MultiExitNet, list[Mixture]]:
    """w^m_j = .1 sin(1+m+2j), b^m_c = .05 cos(m+c), m and j from 1, on exits that answer the golden logits."""
    mixtures = [Mixture(m, CLASSES, "geometric").double() for m in range(1, 5)]
    for m, mixture in enumerate(mixtures, 1):
        mixture.weights.data.copy_(0.1 * torch.sin(1 + m + 2 * torch.arange(1.0, m + 1, dtype=torch.float64)))
        c = torch.arange(CLASSES, dtype=torch.float64)
        mixture.bias.data.copy_(0.05 * torch.cos(m + c))
    branches = cascaded([Branch(nn.Identity(), Emit(z)) for z in logits()], [])
    net = chain([Ensemble(part, before, mixture) for before, (part, mixture) in enumerate(zip(branches, mixtures))])
    if switched:
        answer_together(net)
    return net, mixtures


def test_ensembles() -> None:
    golden = GOLDEN["ztw_ensemble"]
    net, mixtures = together()
    outputs = net(torch.zeros(3, 1))
    losses = cross_entropy(outputs.logits, LABELS)
    losses.sum().backward()
    assert losses.sum().item() == pytest.approx(golden["loss_sum"], rel=1e-8)
    for expected, loss, q, mixture in zip(golden["per_m"], losses, outputs.logits.exp(), mixtures, strict=True):
        assert mixture.weights.grad is not None and mixture.bias.grad is not None
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
        assert mixture.weights.grad.tolist() == pytest.approx(expected["gw"], rel=1e-8)
        assert mixture.bias.grad.tolist() == pytest.approx(expected["gb"], rel=1e-8)
        assert q[0].tolist() == pytest.approx(expected["q_b0"], rel=1e-8)
        assert q.amax(1).tolist() == pytest.approx(expected["conf"], rel=1e-8)
        assert q.argmax(1).tolist() == expected["pred"]


def test_ensembles_at_the_start_are_geometric_means() -> None:
    net, mixtures = together()
    for mixture in mixtures:
        mixture.requires_grad_(False).weights.zero_()
        mixture.bias.zero_()
    losses = cross_entropy(net(torch.zeros(3, 1)).logits, LABELS)
    assert losses.tolist() == pytest.approx(GOLDEN["ztw_ensemble_init"]["loss"], rel=1e-8)


def test_arithmetic_ensembles_are_sums_of_probabilities() -> None:
    mixture = Mixture(4, CLASSES, "arithmetic").double().requires_grad_(False)
    mixture.bias.fill_(-3.0)
    z = logits()
    sums = (mixture.weights.exp()[:, None, None] * z.softmax(-1)).sum(0) + mixture.bias.exp()
    torch.testing.assert_close(mixture(z.movedim(0, 1)).exp(), sums / sums.sum(-1, keepdim=True))


@pytest.mark.parametrize("enabled", [[True] * 4, [False, True, False, True]])
def test_ensembles_through_segments(enabled: list[bool]) -> None:
    net = together()[0].eval()
    expected = net(torch.zeros(3, 1)).logits[torch.tensor(enabled)]
    state, carry, result = torch.zeros(3, 1), (), []
    for segment in segments(net, enabled):
        state, carry, answered = segment(state, carry)
        result.append(answered)
    torch.testing.assert_close(torch.stack(result), expected, rtol=0, atol=0)


def test_until_they_are_switched_on_exits_answer_alone() -> None:
    torch.testing.assert_close(together(switched=False)[0](torch.zeros(3, 1)).logits, logits(), rtol=0, atol=0)


@pytest.mark.parametrize(("entry", "reduction"), [("imta_ofa_code", "elements"), ("imta_ofa_batchmean", "batch")])
def test_a_frozen_teacher(entry: str, reduction: Any) -> None:
    """t = 1.3 z_K, the worked example's other network."""
    golden = GOLDEN[entry]
    z = logits().requires_grad_()
    objective = OneForAll("imta", golden["hp"]["gamma"], golden["hp"]["T"] * 1.0, reduction)
    terms = objective(ExitOutputs(z, (), ()), BATCH, 0.0, teacher=1.3 * z[-1:].detach())
    loss = sum(terms.values(), torch.zeros(()))
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-8)
    assert z.grad is not None and [row.norm().item() for row in z.grad] == pytest.approx(golden["gz_k"], rel=1e-8)


def test_mixed_schedule_begins_with_the_final_exit() -> None:
    loss = final_exit(ExitOutputs(logits(), (), ()), BATCH, 0.0)["final"]
    assert loss.item() == pytest.approx(GOLDEN["mixed_losses"]["phase1_ce_final"], rel=1e-8)
