"""L2W's gradient by phi equals double backward; its Adam is torch's; its step takes both halves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from offramp.losses.cross_entropy import sample_cross_entropy
from offramp.methods import _look_ahead as look_ahead
from offramp.methods import find
from offramp.methods._taps import equilibrium
from offramp.methods.l2w import learn, meta_loss, phi_gradient
from offramp.net import Branch, Head, MultiExitNet, Tap, share
from offramp.outputs import Batch
from offramp.step import StepContext


def network() -> MultiExitNet:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(a, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh(), nn.Dropout(0.2)) for a in (2, 5, 5)
    ]
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(5, 4)) for _ in stages]).double()


def batch(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(inputs, torch.arange(size) % 4, torch.arange(size))


def parts_of(tap: Tap = share, **hyper: Any) -> StepContext:
    net = network()
    objective: Any = find("l2w").build(hidden=6, **hyper).objective
    objective.prepare_for_exits(exits=3, widths=(5,) * 3)
    objective.double()
    optimizer = torch.optim.SGD(net.parameters(), 0.3, 0.9, weight_decay=1e-2)
    for part in net.parameters():
        optimizer.state[part]["momentum_buffer"] = torch.full_like(part, 0.01)
    fabric = SimpleNamespace(world_size=1, backward=Tensor.backward)
    return StepContext(fabric, net, objective, optimizer, tap, bare=net)


def by_double_backward(parts: StepContext, here: Batch, other: Batch) -> tuple[Tensor, ...]:
    objective: Any = parts.objective
    net, settings = parts.net, objective.settings
    theta = dict(net.named_parameters())

    def run(parameters: dict[str, Tensor], batch: Batch, tap: Tap) -> Any:
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        return functional_call(net, (parameters, buffers), (batch.inputs,), {"tap": tap}).logits

    phi = [tensor.clone().requires_grad_() for tensor in objective.phi()]
    logits = run(theta, here, parts.tap)
    losses = sample_cross_entropy(logits, here.labels)
    loss = (objective.weights(phi, logits, losses) * losses).mean(1).sum()
    result = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    ahead = {
        name: part.detach() - 0.3 * (0.9 * 0.01 + gradient + 1e-2 * part.detach())
        for (name, part), gradient in zip(theta.items(), result)
    }
    seen = run(ahead, other, share)
    return torch.autograd.grad(meta_loss(seen, other.labels, settings.target, settings.meta_reduction), phi)


@pytest.mark.parametrize("tap", [share, equilibrium])
@pytest.mark.parametrize("hyper", [{}, {"centre": "row", "sees": "conf"}, {"centre": "mat", "sees": "both"}])
def test_phi_gradient_equals_double_backward(tap: Tap, hyper: dict[str, Any]) -> None:
    parts, here, other = parts_of(tap, **hyper), batch(6, 1), batch(7, 2)
    thrown = look_ahead.rng_state(torch.device("cpu"))
    got = phi_gradient(parts, here, other, parts.net(here.inputs, tap=tap), thrown)
    torch.set_rng_state(thrown[0])
    for mine, theirs in zip(got, by_double_backward(parts, here, other), strict=True):
        assert theirs.abs().max() > 1e-9
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-14)


def test_its_adam_is_torchs() -> None:
    objective: Any = parts_of(meta_lr=0.01, meta_weight_decay=0.1).objective
    theirs = [tensor.clone().requires_grad_() for tensor in objective.phi()]
    adam = torch.optim.Adam(theirs, lr=0.01, weight_decay=0.1)
    for step in range(3):
        gradient = tuple(torch.full_like(tensor, 0.1 * step + 0.05) for tensor in theirs)
        objective.improve(gradient, 0.0)
        for tensor, values in zip(theirs, gradient):
            tensor.grad = values
        adam.step()
    for mine, other in zip(objective.phi(), theirs):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-9, atol=1e-12)
    objective.improve(gradient, 1.0)  # the cosine has come to 0
    for mine, other in zip(objective.phi(), theirs):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-9, atol=1e-12)


def test_weights_are_one_on_average_and_get_no_gradient() -> None:
    parts = parts_of(epsilon=0.8)
    objective: Any = parts.objective
    values = batch(9)
    outputs = parts.net(values.inputs)
    losses = sample_cross_entropy(outputs.logits, values.labels)
    weights = objective.weights(objective.phi(), outputs.logits, losses)
    torch.testing.assert_close(weights.mean(0), torch.ones(9, dtype=torch.float64))
    assert weights.std() > 1e-3 and not weights.requires_grad


@pytest.mark.parametrize(("size", "moves", "steps"), [(8, True, 2), (3, False, 1)])
def test_a_batch_makes_two_steps_unless_it_is_tiny(size: int, moves: bool, steps: int) -> None:
    parts = parts_of()
    objective: Any = parts.objective
    before, taken = [tensor.clone() for tensor in objective.phi()], []
    parts.optimizer.register_step_post_hook(lambda *args: taken.append(1))
    terms = learn(parts, batch(size), 0.0)
    assert torch.isfinite(terms["ce"]) and len(taken) == steps
    assert all(torch.equal(one, other) != moves for one, other in zip(before, objective.phi()))


def test_phi_learns_at_every_so_many_th_batch() -> None:
    parts = parts_of(meta_every=3)
    objective: Any = parts.objective
    counts = []
    for _ in range(5):
        learn(parts, batch(8), 0.0)
        counts.append(int(objective.taken))
    assert counts == [2, 2, 2, 4, 4]
