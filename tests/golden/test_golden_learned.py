"""Worked examples of HDKD's family and of IMTA: losses and gradients to 1e-8, the weights' gradient to 1e-10."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.dense_distillation import pairs
from offramp.methods import find
from offramp.methods._bilevel import learn, weight_gradient
from offramp.methods._taps import equilibrium
from offramp.methods.ofa import OneForAll
from offramp.net import Branch, MultiExitNet, share
from offramp.outputs import Batch, ExitOutputs
from offramp.step import StepContext

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
LABELS = torch.tensor(GOLDEN["_inputs"]["y"])


def logits() -> Tensor:
    return torch.tensor(GOLDEN["_inputs"]["z"], dtype=torch.float64).requires_grad_()


def assert_golden(loss: Tensor, z: Tensor, entry: str) -> None:
    """The loss and its gradient's norms are the golden ones."""
    loss.backward()
    expected = GOLDEN[entry]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    assert z.grad is not None and z.grad.norm().item() == pytest.approx(expected["gz"], rel=1e-8)
    assert [row.norm().item() for row in z.grad] == pytest.approx(expected["gz_k"], rel=1e-8)


@pytest.mark.parametrize("name", ["hdkd", "hdbt", "hmsdnet"])
def test_weighted_losses(name: str) -> None:
    gamma = GOLDEN["hdkd_weighted"]["hp"]["gamma"]
    by_pair = dict(zip(pairs(4), gamma[4:]))
    kept = {"hdkd": pairs(4), "hdbt": pairs(4, "final"), "hmsdnet": []}[name]
    arguments = (*gamma[:4], *(by_pair[pair] for pair in kept))
    objective = find(name).build(weights=arguments).objective
    objective.prepare_for_exits(exits=4, widths=(6,) * 4)
    objective.double()
    objective.weights.copy_(torch.tensor(arguments, dtype=torch.float64))
    z = logits()
    terms = objective(ExitOutputs(z, (), ()), Batch(torch.zeros(3, 1), LABELS, torch.arange(3)), 0.0)
    assert_golden(sum(terms.values(), torch.zeros(())), z, f"{name}_weighted")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_balanced_validation_loss_and_its_average(alpha: float) -> None:
    objective = find("hdkd").build(alpha=alpha).objective
    objective.prepare_for_exits(exits=4, widths=(6,) * 4)
    objective.double()
    objective.averages.copy_(torch.tensor([1.2, 1.3, 1.4, 1.5], dtype=torch.float64))
    z = logits()
    ce = cross_entropy(z, LABELS)
    assert_golden(objective.validation(ce), z, f"hdkd_val_alpha{alpha}")
    objective.observe(ce.detach())
    assert objective.averages.tolist() == pytest.approx(GOLDEN["hdkd_ema_update"]["new"], rel=1e-8)


class Wave(nn.Module):
    """tanh(x W), or x W as an exit's head."""

    def __init__(self, weight: Tensor, head: bool) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(weight), head

    def forward(self, x: Tensor) -> Any:
        return (x @ self.weight, x, x) if self.head else torch.tanh(x @ self.weight)


def toy() -> tuple[MultiExitNet, Batch, Batch]:
    golden = GOLDEN["hdkd_meta_toy"]
    d, h, c = (torch.arange(golden[n], dtype=torch.float64) for n in ("D", "H", "C"))
    i = h
    trunk = [0.3 * torch.cos(1 + 2 * d[:, None] + 5 * h)]
    trunk += [0.3 * torch.sin(3 * k + 2 * i[:, None] + (k + 1) * h) for k in (1, 2)]
    heads = [0.4 * torch.sin(2 + 7 * k + 3 * h[:, None] + c) for k in range(3)]
    net = MultiExitNet(
        [Wave(weight, head=False) for weight in trunk],
        [Branch(nn.Identity(), Wave(weight, head=True)) for weight in heads],
    )
    b, v = torch.arange(4), torch.arange(5)
    train = Batch(torch.sin(1 + 3 * b[:, None] + d), (2 * b + 1) % 5, b)
    return net, train, Batch(torch.sin(2 + 5 * v[:, None] + 2 * d), (3 * v + 2) % 5, v)


def prepared(**hyper: Any) -> Any:
    golden = GOLDEN["hdkd_meta_toy"]
    objective = find("hdkd").build(step_size=golden["eps"], **hyper).objective
    objective.prepare_for_exits(exits=3, widths=(6,) * 3)
    objective.double()
    objective.weights.copy_(torch.tensor(golden["gamma"], dtype=torch.float64))
    objective.averages.copy_(torch.tensor(golden["ema"], dtype=torch.float64))
    return objective


def toy_parts(objective: Any) -> tuple[StepContext, Batch]:
    net, train, held = toy()
    fabric = SimpleNamespace(world_size=1, backward=Tensor.backward, autocast=nullcontext)
    optimizer = torch.optim.SGD(net.parameters(), GOLDEN["hdkd_meta_toy"]["xi"])
    return StepContext(fabric, net, objective, optimizer, share, bare=net, held_out=lambda: held), train


def test_hdkd_meta_gradient() -> None:
    golden, objective = GOLDEN["hdkd_meta_toy"], prepared()
    parts, train = toy_parts(objective)
    losses = objective.losses(parts.net(train.inputs), train.labels)
    assert losses.tolist() == pytest.approx(golden["losses"], rel=1e-10)
    result = weight_gradient(parts, train)
    assert result.tolist() == pytest.approx(golden["dLval_dgamma"], rel=1e-10)
    assert objective.averages.tolist() == pytest.approx(golden["ema_new"], rel=1e-10)


@pytest.mark.parametrize(
    ("hyper", "entry"), [({}, "gamma_new"), ({"renormalise": True}, "gamma_new_clamped_renormalised")]
)
def test_hdkd_step(hyper: dict[str, Any], entry: str) -> None:
    objective = prepared(**hyper)
    parts, train = toy_parts(objective)
    terms = learn(parts, train, 0.0)
    golden = GOLDEN["hdkd_meta_toy"]
    assert objective.weights.tolist() == pytest.approx(golden[entry], rel=1e-12)
    new, losses = torch.tensor(golden[entry]), torch.tensor(golden["losses"])
    assert sum(terms.values()).item() == pytest.approx((new * losses).sum().item(), rel=1e-6)


@pytest.mark.parametrize(("entry", "reduction"), [("imta_ofa_code", "elements"), ("imta_ofa_batchmean", "batch")])
def test_ofa(entry: str, reduction: Any) -> None:
    # The worked example's teacher is another network; ours is the final exit, so that its part is taken apart.
    z, golden = logits(), GOLDEN[entry]
    hyper = golden["hp"]
    objective = OneForAll("ofa", hyper["gamma"], hyper["T"] * 1.0, reduction)
    batch = Batch(torch.zeros(3, 1), LABELS, torch.arange(3))
    taught = torch.cat([z[:-1], 1.3 * z[-1:].detach()])
    terms = objective(ExitOutputs(taught, (), ()), batch, 0.0)
    ce = cross_entropy(z, LABELS)[-1]
    assert_golden(sum(terms.values()) - cross_entropy(taught, LABELS)[-1] + ce, z, entry)


def test_equilibrium_weights() -> None:
    for entry in ("imta_ge_toy", "boost_ge_toy"):
        golden = GOLDEN[entry]
        a = torch.tensor(golden["a"], dtype=torch.float64, requires_grad=True)
        state, loss = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for exit, (factor, weight) in enumerate(zip(a, golden["c"])):
            entering, state = equilibrium(factor * state, exit, 4)
            loss = loss + weight * entering
        loss.backward()
        assert a.grad is not None and a.grad.tolist() == pytest.approx(golden["closed_form"], rel=1e-12)


@pytest.mark.parametrize("segment", range(4))
def test_equilibrium_gives_each_stage_the_mean_gradient(segment: int) -> None:
    """The trunk before exit s gets every later exit's gradient times 1/(K-s+1)."""
    state = marked = torch.ones((), dtype=torch.float64, requires_grad=True)
    weights = []
    for last in range(4):
        state, result = marked, None
        for exit in range(segment, 4):
            entering, state = equilibrium(state, exit, 4)
            result = entering if exit == last else result
        weights.append(0.0 if result is None else torch.autograd.grad(result, marked)[0].item())
    assert weights == pytest.approx(GOLDEN["imta_ge_weights"]["w"][segment], rel=1e-12)
