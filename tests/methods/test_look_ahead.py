"""The gradient of the loss weights: one forward-mode product equals double backward, and touches nothing."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from offramp.layers import Conv
from offramp.losses.cross_entropy import cross_entropy
from offramp.methods import _forward_product as forward_product
from offramp.methods import _look_ahead as look_ahead
from offramp.methods import find
from offramp.methods._bilevel import learn, weight_gradient
from offramp.methods._taps import equilibrium
from offramp.net import Branch, Head, MultiExitNet, Tap, share
from offramp.outputs import Batch
from offramp.step import StepContext
from offramp.train import optim
from offramp.train.recipe import Recipe

CLASSES = 4
Layers = Callable[[int], list[nn.Module]]
BUILDS: dict[str, Layers] = {
    "plain": lambda width: [nn.Tanh()],
    "batch-norm": lambda width: [nn.BatchNorm2d(width), nn.Tanh()],
    "dropout": lambda width: [nn.BatchNorm2d(width), nn.Tanh(), nn.Dropout(0.3)],
}
TAPS: dict[str, Tap] = {"share": share, "equilibrium": equilibrium}


def network(build: Layers) -> MultiExitNet:
    torch.manual_seed(0)
    widths = (2, 5, 4, 6)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), *build(b)) for a, b in pairwise(widths)]
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(width, CLASSES)) for width in widths[1:]]).double()


def batch(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(inputs, torch.arange(size) % CLASSES, torch.arange(size))


def prepared(net: MultiExitNet, **hyper: Any) -> Any:
    objective: Any = find("hdkd").build(**hyper).objective
    objective.prepare_for_exits(exits=net.exits, widths=(6,) * net.exits)
    objective.double()
    objective.weights.copy_(torch.linspace(0.5, 1.5, len(objective.weights)))
    objective.averages.copy_(torch.tensor([1.7, 1.6, 1.5]))
    return objective


def parts_of(net: MultiExitNet, objective: Any, tap: Tap, optimizer: torch.optim.Optimizer, held: Batch) -> StepContext:
    fabric = SimpleNamespace(world_size=1, backward=Tensor.backward, autocast=nullcontext)
    return StepContext(fabric, net, objective, optimizer, tap, bare=net, held_out=lambda: held)


def by_double_backward(
    net: MultiExitNet,
    objective: Any,
    tap: Tap,
    optimizer: torch.optim.SGD,
    train: Batch,
    held: Batch,
    by_optimizer: bool,
) -> Tensor:
    """The same gradient from a graph of the gradient."""
    theta = dict(net.named_parameters())
    weights = objective.weights.clone().requires_grad_()

    def run(parameters: dict[str, Tensor], batch: Batch, tap: Tap) -> Any:
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        return functional_call(net, (parameters, buffers), (batch.inputs,), {"tap": tap})

    losses = objective.losses(run(theta, train, tap), train.labels)
    result = torch.autograd.grad((weights * losses).sum(), list(theta.values()), create_graph=True)
    group, ahead = optimizer.param_groups[0], {}
    for (name, part), gradient in zip(theta.items(), result):
        if by_optimizer:
            gradient = gradient + group["weight_decay"] * part.detach()
            running = group["momentum"] * optimizer.state[part]["momentum_buffer"] + gradient
            gradient = gradient + group["momentum"] * running if group["nesterov"] else running
        ahead[name] = part.detach() - 0.1 * gradient
    with look_ahead.batch_norms(net, running=objective.settings.val_bn == "running"):
        ce = cross_entropy(run(ahead, held, share).logits, held.labels)
    return torch.autograd.grad(objective.validation(ce), weights)[0]


def both(net: MultiExitNet, tap: Tap, **hyper: Any) -> tuple[Tensor, Tensor, Any]:
    """(one product, double backward, the objective) on the same random numbers, after one step of the optimiser."""
    objective, train, held = prepared(net, **hyper), batch(6, 1), batch(5, 2)
    nesterov = hyper.get("look_ahead") == "optimizer"
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=nesterov, weight_decay=1e-2)
    for part in net.parameters():
        optimizer.state[part]["momentum_buffer"] = torch.full_like(part, 0.01)
    parts = parts_of(net, objective, tap, optimizer, held)
    thrown, before = look_ahead.rng_state(torch.device("cpu")), copy.deepcopy(objective)
    got = weight_gradient(parts, train)
    torch.set_rng_state(thrown[0])
    return got, by_double_backward(net, before, tap, optimizer, train, held, by_optimizer=nesterov), objective


@pytest.mark.parametrize("hyper", [{}, {"look_ahead": "optimizer"}, {"val_bn": "running"}, {"detach_teachers": False}])
@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_product_equals_double_backward(build: str, tap: str, mode: str, hyper: dict[str, Any]) -> None:
    net = network(BUILDS[build]).train(mode == "train")
    got, expected, _ = both(net, TAPS[tap], **hyper)
    assert expected.abs().min() > 1e-9
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "first": lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)),
    "behind-what-is-frozen": lambda: nn.Sequential(nn.Conv2d(2, 3, 3).requires_grad_(False), nn.BatchNorm2d(3)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3).requires_grad_(False)),
    "without-weights": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)),
    "without-statistics": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
    "mean-of-all": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.Tanh()),
    "one-dimension": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.BatchNorm1d(3, eps=0.1)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_batch_norms_have_the_derivative_that_pytorch_gives_them(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    net, inputs = NORMS[kind]().double().train(training), batch(6, 1).inputs
    theta = look_ahead.trained(net)
    direction = {name: torch.randn_like(part) for name, part in theta.items()}

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        built: Tensor = functional_call(net, (parameters, buffers), (inputs,))
        return built.square().flatten(1).mean(1)

    here = {name: part.detach() for name, part in theta.items()}
    expected = torch.func.jvp(losses, (here,), (direction,))[1]
    torch.testing.assert_close(forward_product.product(losses, theta, direction), expected, rtol=1e-12, atol=1e-14)


def test_what_is_there_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's own rules all is right, too, and slower."""
    taken = []
    for name in ("_batch_norm", "_convolution"):
        usual = getattr(forward_product, name)
        monkeypatch.setattr(
            forward_product, name, lambda *args, usual=usual, name=name, **kw: taken.append(name) or usual(*args, **kw)
        )
    both(network(BUILDS["batch-norm"]), share)
    assert taken == ["_convolution", "_batch_norm"] * 3


def test_nothing_is_kept_under_autocast() -> None:
    convolved, maps = forward_product.RecordedConvolutions(), torch.randn(2, 4, 8, 8)
    with convolved, torch.autocast("cpu", torch.bfloat16):
        Conv(4, 6, 3, bias=False)(maps)  # as a matrix product, with a convolution within
        Conv(4, 6, 3, groups=2)(maps)
    assert not convolved.kept
    with convolved:
        built = Conv(4, 6, 3)(maps)
    (kept,) = convolved.kept
    assert torch.equal(kept.result, built) and kept.version == built._version


class Twice(nn.Module):
    """Two convolutions alike, of which `first` says which come first; the second one in autocast or out of it."""

    def __init__(self, first: list[int], low: bool | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=bias) for bias in (True, False))
        self.first, self.low = first, low

    def forward(self, maps: Tensor) -> Tensor:
        """Each time in the next order."""
        turned = self.first.pop() if self.first else 0
        built = self.layers[turned](maps)
        with nullcontext() if self.low is None else torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            built = torch.tanh(self.layers[1 - turned](built.to(maps.dtype)))
        return built.to(maps.dtype)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("first", "low"), [([], None), ([1, 0], None), ([], False), ([], True)])
def test_only_answers_of_the_same_convolution_are_taken(first: list[int], low: bool | None, frozen: bool) -> None:
    torch.manual_seed(0)
    net, inputs = Twice([], low), torch.randn(3, 2, 4, 4)
    net.layers[0].weight.requires_grad_(not frozen)
    theta = look_ahead.trained(net)
    direction = {name: torch.randn_like(part) for name, part in theta.items()}

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        built: Tensor = functional_call(net, parameters, (inputs,))
        return built.square().flatten(1).mean(1)

    net.first = first[:1]
    expected = forward_product.product(losses, theta, direction)
    net.first, convolved = list(first), forward_product.RecordedConvolutions()
    with convolved, torch.autocast("cpu", torch.bfloat16, enabled=low is False):
        losses(theta)
    got = forward_product.product(losses, theta, direction, convolved)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_a_network_without_forward_mode_derivatives_is_refused() -> None:
    fixed, weight = torch.randn(3), torch.randn(3, requires_grad=True)
    with pytest.raises(ValueError, match="cannot look ahead: a function within it has no forward-mode derivative"):
        forward_product.product(lambda parameters: fixed, {"weight": weight}, {"weight": torch.ones(3)})


def test_a_convolution_that_was_changed_in_place_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(lambda width: [nn.ReLU(inplace=True)])
    taken = []
    usual = forward_product._convolution
    monkeypatch.setattr(forward_product, "_convolution", lambda *args, **kw: taken.append(1) or usual(*args, **kw))
    got, expected, _ = both(net, share)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)
    assert len(taken) == 3


def test_equilibrium_is_another_gradient() -> None:
    one, other = (both(network(BUILDS["batch-norm"]), tap)[0] for tap in TAPS.values())
    assert not torch.allclose(one, other, rtol=1e-3)


def test_the_networks_own_step_draws_what_the_look_ahead_drew() -> None:
    """As one pass on the training batch and one on the held-out one would; other numbers would give other weights."""
    result = []
    for seed in (0, 0, 1):
        net = network(BUILDS["dropout"])
        objective, train, held = prepared(net), batch(6, 1), batch(5, 2)
        parts = parts_of(net, objective, share, torch.optim.SGD(net.parameters(), 0.1), held)
        torch.manual_seed(seed)
        alone = objective.losses(net(train.inputs), train.labels)
        net(held.inputs)
        following = torch.rand(3)
        torch.manual_seed(seed)
        terms = learn(parts, train, 0.0)
        assert torch.equal(following, torch.rand(3))
        torch.testing.assert_close(sum(terms.values()), sum(objective.terms(alone).values()).detach())
        result.append(objective.weights.clone())
    assert torch.equal(result[0], result[1]) and not torch.allclose(result[0], result[2], rtol=1e-3)


def test_no_pass_touches_network_or_buffers() -> None:
    net = network(BUILDS["dropout"])
    objective, train, held = prepared(net), batch(6, 1), batch(5, 2)
    parts = parts_of(net, objective, share, torch.optim.SGD(net.parameters(), 0.1), held)
    before = copy.deepcopy(net.state_dict())
    weight_gradient(parts, train)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(part.training for part in net.modules()) and all(part.grad is None for part in net.parameters())


def test_own_step_is_the_optimisers() -> None:
    for nesterov in (False, True):
        net = network(BUILDS["plain"])
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, nesterov=nesterov, weight_decay=1e-2)
        for _ in range(2):  # without a momentum buffer, then with one
            loss = cross_entropy(net(batch(6, 1).inputs).logits, batch(6, 1).labels).sum()
            theta = look_ahead.trained(net)
            gradient = look_ahead.gradients(loss, theta)
            ahead, reach = look_ahead.own_step(theta, gradient, optimizer, look_ahead.rates(theta, optimizer))
            for name, part in theta.items():
                part.grad = gradient[name]
            optimizer.step()
            assert list(reach.values()) == pytest.approx([0.19 if nesterov else 0.1] * len(reach))
            for name, part in net.named_parameters():
                torch.testing.assert_close(ahead[name], part, rtol=1e-14, atol=1e-14)


def test_own_step_needs_sgd() -> None:
    net = network(BUILDS["plain"])
    with pytest.raises(ValueError, match="own step needs SGD: use optimizer=sgd"):
        theta = look_ahead.trained(net)
        look_ahead.own_step(theta, dict(theta), torch.optim.AdamW(net.parameters()), dict.fromkeys(theta, 0.1))
    for options in ({"momentum": 0.9, "dampening": 0.1}, {"maximize": True}):
        sgd = torch.optim.SGD(net.parameters(), lr=0.1, **options)
        with pytest.raises(ValueError, match="needs SGD without dampening and maximize"):
            look_ahead.own_step(theta, dict(theta), sgd, dict.fromkeys(theta, 0.1))


def test_a_step_ahead_takes_every_part_s_own_rate() -> None:
    """A backbone at a rate of its own (--lr-backbone): that of now, which has come down, and that of the start."""
    net = network(BUILDS["plain"])
    theta = look_ahead.trained(net)
    slow = [name for name in theta if name.startswith("stages")]
    assert 0 < len(slow) < len(theta)
    recipe = Recipe(lr=0.1, lr_backbone=0.01, momentum=0.0, weight_decay=0.0)
    optimizer = optim.build(recipe, theta.values(), [theta[name] for name in slow])
    optim.set_rate(optimizer, 0.02)
    for initial, lr in ((False, 0.02), (True, 0.1)):
        rates = look_ahead.rates(theta, optimizer, initial=initial)
        assert rates == pytest.approx({name: lr * 0.1 if name in slow else lr for name in theta})
        gradient = {name: torch.ones_like(part) for name, part in theta.items()}
        for ahead, reach in (
            look_ahead.plain_step(theta, gradient, rates),
            look_ahead.own_step(theta, gradient, optimizer, rates),
        ):
            assert reach == rates
            for name, part in theta.items():
                torch.testing.assert_close(ahead[name], part - rates[name])


def test_weights_that_all_come_to_nothing_keep_their_sum() -> None:
    objective = prepared(network(BUILDS["plain"]), renormalise=True)
    before = objective.weights.clone()
    objective.move(torch.full_like(before, 9.0))
    assert torch.equal(objective.weights, before)
    objective.move(torch.arange(len(before)) * 0.1)
    torch.testing.assert_close(objective.weights.sum(), before.sum())
    assert not torch.equal(objective.weights, before)


def test_the_averages_follow_the_training_batch_if_told_to() -> None:
    """E_k (eq. 9) of the training batch at theta instead of the held-out batch at theta'."""
    torch.manual_seed(0)
    net, train, held = network(BUILDS["plain"]), batch(8, 1), batch(8, 2)
    expected = cross_entropy(net(train.inputs).logits, train.labels).detach()
    for averages, follows in (("train", True), ("held-out", False)):
        objective = prepared(net, averages=averages)
        before = objective.averages.clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        weight_gradient(parts_of(net, objective, share, optimizer, held), train)
        assert torch.allclose(objective.averages, 0.9 * before + 0.1 * expected) is follows


class Attention(nn.Module):
    """Fused attention over the positions of a map, which is called under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 12, 1)
        self.same = self.inner

    def forward(self, maps: Tensor) -> Tensor:
        query, key, value = self.same(maps).flatten(2).transpose(1, 2).chunk(3, 2)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).unflatten(2, maps.shape[2:])


def test_fused_attention_and_modules_with_two_names() -> None:
    net = MultiExitNet([nn.Sequential(Attention())], [Branch(nn.Identity(), Head(4, 5))]).double()
    ours = net.stages[0][0].inner.weight  # type: ignore[index,union-attr]
    images = torch.randn(3, 3, 4, 4, dtype=torch.float64)

    def losses(parameters: look_ahead.Tensors) -> Tensor:
        return look_ahead.outputs_with(net, parameters, images, share).logits.square().mean((1, 2))

    theta = look_ahead.trained(net)
    direction = {name: torch.randn_like(parameter) for name, parameter in theta.items()}
    gradient = torch.autograd.grad(losses(theta).sum(), list(theta.values()))
    expected = sum((grad * direction[name]).sum() for name, grad in zip(theta, gradient, strict=True))
    torch.testing.assert_close(forward_product.product(losses, theta, direction).sum(), expected)
    assert net.stages[0][0].same.weight is ours  # type: ignore[index,union-attr]
