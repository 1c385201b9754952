"""Exits that see each other: what is handed along, what gets gradients, what is refused, and how they run."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.bundle.read import open_bundle
from offramp.bundle.write import write
from offramp.data.augment import normalise
from offramp.data.load import load
from offramp.data.splits import DataSet
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.methods import find
from offramp.methods._cascade import Cascaded, switch_on
from offramp.methods.eed import averaged
from offramp.methods.imta import Final, classifiers, end_stage_1, finals
from offramp.methods.ztw import Ensemble, answer_together
from offramp.net import Backbone, Branch, Head, MultiExitNet, segments
from offramp.outputs import Batch, ExitOutputs
from offramp.split.weights import load_state

CLASSES, WIDTHS = 10, (6, 6, 8, 8)


class Answer(nn.Module):
    """A head whose classifier is hidden behind its features' map."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.last(state).mean((2, 3)), state.mean((2, 3)), state


def backbone(head: Callable[[int, int], nn.Module] = Head) -> Backbone:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise((1, *WIDTHS))]
    return Backbone(tuple(nn.Sequential(block) for block in blocks), head(WIDTHS[-1], CLASSES), (1, 8, 8))


def network(name: str, head: Callable[[int, int], nn.Module] = Head, **hyper: Any) -> MultiExitNet:
    built = backbone(head)
    network = find(name).build(**hyper).network
    net = network(lambda: built, lambda trunk, exit: Branch(nn.Identity(), Head(WIDTHS[exit], CLASSES)))
    assert isinstance(net, MultiExitNet)
    return net


def lively(net: MultiExitNet) -> MultiExitNet:
    """As after training: every weight and statistic something of its own, all switches on."""
    switch_on(net)
    answer_together(net)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("stages"):
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
        for branch in net.branches:
            next(part for part in branch.modules() if isinstance(part, Head)).classifier.weight.mul_(6)
    return net.eval()


HOW: list[tuple[str, dict[str, Any]]] = [
    ("ztw", {}),
    ("ztw", {"norm": "layer", "combine": "arithmetic", "ensemble_final": False}),
    ("ztw", {"shares": (0.5, 0.5, 0.0)}),
    ("imta", {}),
    ("impr", {"links": True}),
]
EVERY = pytest.mark.parametrize(("name", "hyper"), HOW, ids=[f"{name}{len(hyper)}" for name, hyper in HOW])


@EVERY
@pytest.mark.parametrize("enabled", [(True,) * 4, (False, True, False, True), (False, False, False, True)])
def test_segments_answer_as_the_network(name: str, hyper: dict[str, Any], enabled: tuple[bool, ...]) -> None:
    net = lively(network(name, **hyper))
    inputs = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = net(inputs).logits[torch.tensor(enabled)]
        state, carry, result = inputs, (), []
        for segment in segments(net, enabled):
            state, carry, logits = segment(state, carry)
            result.append(logits)
    torch.testing.assert_close(torch.stack(result), expected)
    assert len({tuple(row.argmax(1).tolist()) for row in net(inputs).logits}) > 1


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits")


@pytest.mark.parametrize(
    ("name", "hyper"),
    [pytest.param(*how, marks=() if how == ("ztw", {}) else pytest.mark.full) for how in HOW],
    ids=[f"{name}-{len(hyper)}" for name, hyper in HOW],
)
def test_a_bundle_answers_as_the_network(name: str, hyper: dict[str, Any], tmp_path: Path, digits: DataSet) -> None:
    """The carry goes through ONNX, with samples that leave and an exit that is switched off."""
    net = lively(network(name, **hyper))
    test = digits.splits["test"]
    inputs = normalise(torch.from_numpy(test.source.batch(test.indices[:60])), digits.mean, digits.std)
    with torch.inference_mode():
        surest = net(inputs).logits.softmax(-1).amax(-1)
    thresholds = (*surest.quantile(0.7, dim=1).tolist()[:3], 0.5)
    policy = ExitPolicy(thresholds=thresholds, enabled=(True, False, True, True))
    write(tmp_path / "b", net, policy, digits, images=60)
    with torch.inference_mode():
        wanted = answer(segments(net, policy.enabled), policy, inputs)
    result = open_bundle(tmp_path / "b").answer(inputs.numpy())
    assert result.exit.tolist() == wanted.exit.tolist() and set(result.exit.tolist()) == {0, 2, 3}
    torch.testing.assert_close(torch.from_numpy(result.logits), wanted.logits, rtol=1e-4, atol=1e-4)


@EVERY
@pytest.mark.parametrize("detach", [True, False])
def test_who_learns_from_whom(name: str, hyper: dict[str, Any], detach: bool) -> None:
    """With detach, the last exit's loss reaches no classifier of an earlier one through the links."""
    if name == "impr":
        hyper, detach = hyper, True
    else:
        hyper = {**hyper, "detach": detach}
    net = network(name, **hyper)
    switch_on(net)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, Cascaded) and part.link is not None:
                part.link.classifier.weight.fill_(0.1)
                part.link.classifier.weight[0] *= -1
    net.train()(torch.randn(4, 1, 8, 8)).logits[2].square().sum().backward()
    reached = [
        any(bool(p.grad is not None and p.grad.any()) for p in head.parameters())
        for head in (part for part in net.modules() if isinstance(part, Head))
    ]
    assert reached == [not detach, not detach, True, False]


def test_exits_that_begin_to_listen_answer_as_before() -> None:
    net = network("imta").eval()
    inputs = torch.randn(3, 1, 8, 8)
    before = net(inputs).logits
    switch_on(net)
    torch.testing.assert_close(net(inputs).logits, before, rtol=0, atol=0)


def test_links_that_are_off_learn_nothing() -> None:
    net = network("imta")
    net.train()(torch.randn(4, 1, 8, 8)).logits.square().sum().backward()
    links = [part.link for part in net.modules() if isinstance(part, Cascaded) and part.link is not None]
    assert len(links) == 3 and not any(p.grad.any() for link in links for p in link.parameters())


def test_what_is_handed_along() -> None:
    """IMTA: the logits before. ZTW: all logits so far, each exit's own, not its ensemble's."""
    for name, sizes in (("imta", [1, 1, 1]), ("ztw", [1, 2, 3])):
        net = lively(network(name))
        alone = network(name).eval()
        alone.load_state_dict(
            {**net.state_dict(), **{k: v for k, v in alone.state_dict().items() if k.endswith(".on")}}
        )
        state, carry, seen = torch.randn(3, 1, 8, 8), (), []
        for segment in segments(net)[:-1]:
            state, carry, _ = segment(state, carry)
            seen.append(len(carry))
        assert seen == sizes and all(tensor.shape == (3, CLASSES) for tensor in carry)


@pytest.mark.parametrize("name", ["ztw", "imta", "boostnet"])
def test_the_trunk_s_weights_go_in_and_out(name: str) -> None:
    """From a plain run into the method's network, and back."""
    plain = network("vanilla")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    net = network(name)
    load_state(net, plain.state_dict())
    inputs = torch.randn(2, 1, 8, 8)
    for one, two in zip(plain.stages.parameters(), net.stages.parameters(), strict=True):
        assert torch.equal(one, two)
    back = network("joint")
    load_state(back, net.state_dict())
    torch.testing.assert_close(back.eval()(inputs).logits[-1], plain.eval()(inputs).logits[-1])


def test_a_final_exit_without_a_linear_layer_on_its_features_stays() -> None:
    net = network("imta", Answer)
    end_stage_1(net)
    assert not finals(net) and isinstance(net.branches[-1], Branch)
    trained = {id(p) for module in classifiers(net) for p in module.parameters()}
    assert trained.isdisjoint(map(id, [*net.stages.parameters(), *net.branches[-1].parameters()]))
    assert trained >= set(map(id, net.branches[:-1].parameters()))


def test_the_end_of_stage_1_of_imta_stores_the_classifier() -> None:
    branch = Branch(nn.Identity(), Head(8, CLASSES))
    final = Final(branch, branch.head.classifier)
    state = torch.randn(3, 8, 2, 2)
    with torch.no_grad():
        final.classifier.weight.mul_(2.0)
    logits, feature, *_ = final(state)
    assert not torch.allclose(final.teach(feature)[0], logits)
    final.store_classifier()
    torch.testing.assert_close(final.teach(feature)[0], logits)
    assert not final.teach(feature.detach()).requires_grad


def test_the_first_ensemble_is_its_only_member() -> None:
    net = lively(network("ztw"))
    first = next(part for part in net.modules() if isinstance(part, Ensemble))
    with torch.no_grad():
        first.mixture.weights.zero_()
        first.mixture.bias.zero_()
    state = torch.randn(3, WIDTHS[0], 4, 4)
    torch.testing.assert_close(first(state)[0].softmax(1), first.branch(state)[0].softmax(1))


def batch(labels: Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 1), labels, torch.arange(len(labels)))


def test_eed_s_learned_weights_follow_the_better_exit() -> None:
    """They start as the plain mean, only the ensemble's own loss moves them, and the good exit gains."""
    labels = torch.arange(8) % 3
    good = 4.0 * nn.functional.one_hot(labels, 3).float()
    logits = torch.stack([-good, 0 * good, good]).requires_grad_()
    outputs = ExitOutputs(logits, tuple(torch.rand(8, 4) for _ in range(3)), ())
    learned, equal = (find("eed").build(weights=weights).objective for weights in ("learned", "equal"))
    for objective in (learned, equal):
        objective.prepare_for_exits(exits=3, widths=(4, 4, 4))
    terms, plain = learned(outputs, batch(labels), 0.0), equal(outputs, batch(labels), 0.0)
    assert set(terms) - set(plain) == {"ensemble"}
    torch.testing.assert_close({name: terms[name] for name in plain}, plain)
    terms["ensemble"].backward(retain_graph=True)
    assert logits.grad is None or not logits.grad.any()
    moved = learned.mix.grad.clone()
    sum(term for name, term in terms.items() if name != "ensemble").backward()
    assert torch.equal(learned.mix.grad, moved)
    optimizer = torch.optim.SGD(learned.parameters(), 0.5)
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad()
        learned(outputs, batch(labels), 0.0)["ensemble"].backward()
    weights = learned.logged_values()["weights"]
    assert weights.sum().item() == pytest.approx(1.0) and weights[2] > 0.6 > 0.2 > weights[0]
    target = averaged([row.detach() for row in logits], learned.mix)
    expected = (weights[:, None, None] * logits.detach()).sum(0)
    torch.testing.assert_close(target, expected)
    assert equal.logged_values() == {}


def test_eed_s_learned_weights_need_their_exits() -> None:
    objective = find("eed").build(weights="learned").objective
    outputs = ExitOutputs(torch.zeros(3, 2, 4), (), ())
    with pytest.raises(ValueError, match=r"learned weights of 3 teachers are needed, there are 0: call objective.prep"):
        objective(outputs, batch(torch.zeros(2, dtype=torch.int64)), 0.0)
    objective.prepare_for_exits(exits=4, widths=(4,) * 4)
    with pytest.raises(ValueError, match="learned weights of 3 teachers are needed, there are 4"):
        objective(outputs, batch(torch.zeros(2, dtype=torch.int64)), 0.0)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ztw", {"shares": (0.5, 0.5)}, "shares needs 3 values, for the backbone, the exits and the ensembles, got 2"),
    ("ztw", {"shares": (0.5, -1.0, 0.5)}, "shares must be at least 0 and finite, got -1.0"),
    ("ztw", {"shares": (0.0, 0.0, 0.0)}, "shares must leave at least one phase, got 0 for all"),
    ("ztw", {"rates": (1.0, 0.0, 1.0)}, "rates must be greater than 0 and finite, got 0.0"),
    ("imta", {"shares": (1.0,)}, "shares needs 2 values, one for each stage, got 1"),
    ("imta", {"shares": (1.0, 0.0)}, "shares must be greater than 0 and finite, got 0.0"),
    ("imta", {"rates": (1.0, 1.0, 1.0)}, "rates needs 2 values, one for each stage, got 3"),
    ("imta", {"gamma": 1.5}, r"gamma must be in \[0, 1\]"),
]


@pytest.mark.parametrize(("name", "hyper", "message"), REFUSED)
def test_what_cannot_work_is_refused(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        find(name).build(**hyper)
