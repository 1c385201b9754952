"""Phases of a run: their epochs, rates, and what they freeze."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from offramp.branches import byot
from offramp.methods import find
from offramp.methods._cascade import Collaborating, switch_on
from offramp.methods._method import Method, Phase, everything
from offramp.methods._taps import equilibrium
from offramp.models import resnet
from offramp.net import Branch, Head, MultiExitNet, attach, fresh, plain
from offramp.train import optim, phases
from offramp.train.recipe import Recipe


def objective(outputs: Any, batch: Any, progress: float) -> dict[str, torch.Tensor]:
    return {"sum": outputs.logits.square().sum()}


METHOD = Method(objective)


def net() -> MultiExitNet:
    torch.manual_seed(0)
    backbone = resnet.build("resnet18", classes=5, width=4, image_size=16)
    return attach(backbone, lambda trunk, exit: byot.build(trunk, exit, 5))


def epochs_of(**options: Any) -> list[tuple[str, int, int]]:
    result = phases.spans(Recipe(**options), METHOD)
    return [(span.phase.trains, span.first, span.epochs) for span in result]


def test_epochs_of_phases() -> None:
    assert epochs_of(epochs=7) == [("all", 0, 7)]
    assert epochs_of(epochs=7, tune="exits") == [("exits", 0, 7)]
    assert epochs_of(epochs=7, tune="mixed") == [("backbone", 0, 4), ("all", 4, 3)]
    assert epochs_of(epochs=2, tune="mixed") == [("backbone", 0, 1), ("all", 1, 1)]
    ours = Method(objective, phases=(Phase("backbone", 0.98), Phase("exits", 0.01), Phase("all", 0.01)))
    assert [(span.first, span.epochs) for span in phases.spans(Recipe(epochs=4), ours)] == [(0, 2), (2, 1), (3, 1)]
    assert phases.span_at(phases.spans(Recipe(epochs=4), ours), 2).phase.trains == "exits"


def test_phases_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^this run trains in 2 phases and needs at least as many epochs, got 1$"):
        epochs_of(epochs=1, tune="mixed")
    ours = Method(objective, phases=(Phase("all"), Phase("exits")))
    with pytest.raises(ValueError, match=r"^tune=exits leaves the backbone as it is, but this method trains backbone "):
        phases.spans(Recipe(tune="exits"), ours)
    with pytest.raises(ValueError, match=r"^a phase needs a share and a rate above 0, got 0.0 and 1.0$"):
        Phase(share=0.0)
    with pytest.raises(ValueError, match=r"^only exits are to be trained, but the network has no early exits$"):
        phases.enter(plain(resnet.build("resnet18", classes=5, width=4)), Phase("exits"), [])


def test_what_tune_makes_of_a_method_s_own_phases() -> None:
    ours = Method(objective, phases=(Phase("backbone", 3.0), Phase("exits", 1.0, 0.1)))

    def result(**options: Any) -> list[tuple[str, int, int, float]]:
        return [(s.phase.trains, s.first, s.epochs, s.phase.rate) for s in phases.spans(Recipe(**options), ours)]

    assert result(epochs=8) == [("backbone", 0, 6, 1.0), ("exits", 6, 2, 0.1)]
    assert result(epochs=8, tune="mixed") == [("backbone", 0, 4, 1.0), ("backbone", 4, 3, 1.0), ("exits", 7, 1, 0.1)]
    assert result(epochs=8, tune="exits") == [("exits", 0, 8, 0.1)]


def test_a_phase_names_its_modules_and_lets_norms_move() -> None:
    network = net()
    ours = list(network.parameters())
    phase = Phase("exits", modules=lambda part: [part.branches[0].head], still=False)
    phases.enter(network, phase, ours)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"branches.0.head.classifier.weight", "branches.0.head.classifier.bias"}
    assert all(part.training for part in network.modules())
    phases.enter(network, dataclasses.replace(phase, still=True), ours)
    assert network.branches[0].head.training and not network.branches[0].body.training
    assert not any(part.training for part in network.stages.modules())


@pytest.mark.parametrize("schedule", ["step", "cosine", "onecycle"])
def test_one_phase_has_the_rates_of_the_run(schedule: Any) -> None:
    recipe = Recipe(epochs=7, schedule=schedule)
    (span,) = phases.spans(recipe, METHOD)
    for step in range(7 * 3):
        assert phases.rate(recipe, span, step // 3, step, 3) == optim.rate(recipe, step // 3, step / 21)


def test_every_phase_runs_through_the_schedule_at_its_own_rate() -> None:
    recipe = Recipe(epochs=8, schedule="cosine")
    first, second = phases.spans(recipe, Method(objective, phases=(Phase("backbone"), Phase("all", 1.0, 0.1))))
    assert phases.rate(recipe, first, 0, 0, 5) == 0.1
    assert phases.rate(recipe, second, 4, 20, 5) == pytest.approx(0.01)
    assert phases.rate(recipe, first, 3, 19, 5) < 0.001


@pytest.mark.parametrize(("trains", "backbone", "exits"), [("all", 1, 1), ("backbone", 1, 0), ("exits", 0, 1)])
def test_what_a_phase_trains(trains: str, backbone: bool, exits: bool) -> None:
    """Gradients and updates there and nowhere else, and batch norms elsewhere keep their statistics."""
    network = net()
    ours = list(network.parameters())
    optimizer = optim.build(Recipe(lr=0.1, weight_decay=0.1), ours)
    phases.enter(network, Phase(trains), ours)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(4, 3, 16, 16)).logits.square().mean().backward()
    optimizer.step()
    for part, trained in ((network.stages, backbone), (network.branches[-1], backbone), (network.branches[0], exits)):
        names = [name for name, module in network.named_modules() if module is part]
        changed = [
            n for n, t in network.state_dict().items() if n.startswith(names[0]) and not torch.equal(t, before[n])
        ]
        assert bool(changed) == bool(trained), (trains, changed[:3])
        assert any("running" in name for name in changed) == (bool(trained) and part is not network.branches[-1])
    phases.enter(network, everything, ours)
    assert all(p.requires_grad for p in network.parameters()) and all(part.training for part in network.modules())


def linked(name: str, **hyper: Any) -> MultiExitNet:
    """A network of a method whose final exit hears the others."""
    torch.manual_seed(0)
    backbone = resnet.build("resnet18", classes=5, width=4, image_size=16)
    built = find(name).build(**hyper).network(lambda: backbone, lambda trunk, exit: byot.build(trunk, exit, 5))
    assert isinstance(built, MultiExitNet)
    return built


@pytest.mark.parametrize(("name", "hyper"), [("boostnet", {}), ("impr", {"links": True}), ("imta", {})])
def test_a_backbone_that_trains_alone_hears_nothing(name: str, hyper: dict[str, Any]) -> None:
    """Its final exit then answers whatever the exits before it say, gradients are the plain network's, links rest."""
    network, inputs = linked(name, **hyper), torch.randn(4, 3, 16, 16)
    switch_on(network)
    for part in network.modules():
        if isinstance(part, Collaborating):
            nn.init.normal_(part.classifier.weight)
    phases.set_earlier_exit_use(network, Phase("backbone"))
    network(inputs, tap=phases.tap(Phase("backbone"), equilibrium)).logits[-1].square().sum().backward()
    result = [part.grad for part in network.stages.parameters()]
    assert all(part.grad is None for part in links(network.branches[-1]).parameters())
    head = next(part for part in network.branches[-1].modules() if isinstance(part, Head))
    alone = MultiExitNet([nn.Sequential(*network.stages)], [Branch(nn.Identity(), head)])
    alone.zero_grad()
    answered = alone(inputs).logits[-1]
    answered.square().sum().backward()
    torch.testing.assert_close(network(inputs).logits[-1], answered)
    torch.testing.assert_close(result, [part.grad for part in network.stages.parameters()])
    phases.set_earlier_exit_use(network, everything)
    assert not torch.allclose(network(inputs).logits[-1], answered)


def links(branch: nn.Module) -> nn.ModuleList:
    return nn.ModuleList([part for part in branch.modules() if isinstance(part, Collaborating)])


def test_a_final_exit_that_hears_others_cannot_stay_as_it_is() -> None:
    for name, hyper in (("boostnet", {}), ("impr", {"links": True})):
        with pytest.raises(ValueError, match=r"^tune=exits freezes the final exit, but with this method its "):
            phases.refuse_net(Recipe(tune="exits"), find(name).build(**hyper), linked(name, **hyper))
    for name, hyper in (("boostnet", {"weaken": (0.0,)}), ("impr", {}), ("ztw", {})):
        phases.refuse_net(Recipe(tune="exits"), find(name).build(**hyper), linked(name, **hyper))
    phases.refuse_net(Recipe(tune="mixed"), find("boostnet").build(), linked("boostnet"))


class Soloist(nn.Module):
    """A user's layer whose attributes have names that are ordinary words."""

    alone = "mine"

    def __init__(self) -> None:
        super().__init__()
        self.construct, self.planes, self.chained, self.kind, self.sampled = "a", [8], True, 3, False

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return state


def test_attributes_of_a_users_modules_are_neither_read_nor_written() -> None:
    network = net()
    final = network.branches[-1]
    assert isinstance(final, Branch)
    final.body = soloist = Soloist()
    before = dict(vars(soloist))
    for phase in (Phase("backbone"), Phase("exits"), everything):
        phases.set_earlier_exit_use(network, phase)
    phases.refuse_net(Recipe(tune="exits"), METHOD, network)
    assert soloist.alone == "mine" and vars(soloist) == before
    assert isinstance(fresh(soloist), Soloist)


def test_progress_is_the_phase_s() -> None:
    first, second = phases.spans(Recipe(epochs=7, tune="mixed"), METHOD)
    assert [phases.progress(first, epoch) for epoch in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert [phases.progress(second, epoch) for epoch in range(4, 7)] == pytest.approx([0.0, 1 / 3, 2 / 3])


def test_what_was_frozen_by_its_model_stays_frozen() -> None:
    network = net()
    network.stages[0].requires_grad_(False)
    phases.enter(network, everything, [p for p in network.parameters() if p.requires_grad])
    assert not any(p.requires_grad for p in network.stages[0].parameters())
    assert all(p.requires_grad for p in network.branches.parameters())


def test_a_backbone_that_never_trains_is_told() -> None:
    joint, ztw = find("joint").build(), find("ztw").build(shares=(0.0, 0.7, 0.3))
    for recipe, method in ((Recipe(tune="exits"), joint), (Recipe(), ztw)):
        (said,) = phases.notes(recipe, method)
        assert said == "the backbone stays as it starts, which is at random: the option weights brings a trained one"
    assert not phases.notes(Recipe(), joint) and not phases.notes(Recipe(tune="mixed"), ztw)


def test_the_backbone_learns_at_its_own_rate() -> None:
    network = net()
    recipe = Recipe(lr=0.1, lr_backbone=0.01)
    extra = nn.Parameter(torch.ones(1))
    optimizer = optim.build(recipe, [*network.parameters(), extra], phases.of_backbone(network))
    optim.set_rate(optimizer, 0.05)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == pytest.approx(0.005) for p in phases.of_backbone(network))
    assert rates[id(extra)] == 0.05 and all(rates[id(p)] == 0.05 for p in network.branches[:-1].parameters())
    with pytest.raises(ValueError, match=r"^lr_backbone must be positive, got 0.0; tune=exits leaves the backbone"):
        dataclasses.replace(recipe, lr_backbone=0.0)
