"""With `graph`, steps run on tensors that never move; on a CPU that shows that nothing else is different."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.losses.schedules import cosine, weighted
from offramp.methods import find
from offramp.methods._method import Phase
from offramp.methods.one import rise
from offramp.outputs import Batch
from offramp.testing import SilentReporter, patterns
from offramp.train import optim
from offramp.train.device import make_fabric
from offramp.train.loop import Loop
from offramp.train.recipe import Recipe
from offramp.train.static_step import StaticStep, why_not


class Told(SilentReporter):
    """A reporter that remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def trained(folder: Path, **options: Any) -> tuple[dict[str, Any], list[Any], Told]:
    """Weights and losses of two epochs of three steps, the last with fewer samples; and the notes."""
    torch.manual_seed(0)
    values = {
        "method": "muse",
        "epochs": 2,
        "batch_size": 8,
        "lr": 0.02,
        "precision": "32",
        "device": "cpu",
        "width": 4,
    }
    config = resolve(Config(**{**values, **options}))
    data, method = patterns(22, 8, 4, 16), build_method(config)
    net = build_net(config, method, classes=4, shape=data.shape)
    prepare_objective(method, net, data.shape)
    folder.mkdir()
    told = Told()
    Loop(make_fabric(config), folder, config, net, method, data, told).run(resume=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if '"step"' in line]
    return load_file(folder / "last.safetensors"), [record.get("terms") for record in records], told


@pytest.mark.parametrize("options", [{"ema": 0.9, "mixup": 0.2, "clip": 1.0}, {"tune": "mixed", "optimizer": "adamw"}])
def test_a_static_step_is_the_plain_step_to_the_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, losses, _ = trained(tmp_path / "plain", **options)
    static, same_losses, told = trained(tmp_path / "static", **options, graph=True)
    assert losses == same_losses and not told.notes
    assert all(torch.equal(plain[name], static[name]) for name in plain)


@pytest.mark.parametrize("tensor_progress", [True, False])
def test_one_capture_serves_all_epochs_of_a_method_that_takes_progress_as_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor_progress: bool
) -> None:
    captures = []
    monkeypatch.setattr(StaticStep, "forget", lambda self: captures.append(self))
    build = build_method
    monkeypatch.setitem(
        globals(), "build_method", lambda config: replace(build(config), tensor_progress=tensor_progress)
    )
    _, terms, _ = trained(tmp_path / "run", graph=True, epochs=3, method_options={"beta_begin": 1e-2, "beta_end": 1e-3})
    assert len(captures) == (0 if tensor_progress else 2)
    features = [step["features"] for step in terms if step]
    assert len(set(features)) == len(features) == 9


def test_every_phase_is_captured_anew_since_its_momentum_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, create, build = [], StaticStep.__init__, build_method
    monkeypatch.setattr(StaticStep, "__init__", lambda self, *about: (begun.append(self), create(self, *about))[1])
    twice = (Phase(),) * 2  # as a method of one's own may have them
    monkeypatch.setitem(globals(), "build_method", lambda config: replace(build(config), phases=twice))
    trained(tmp_path / "run", method="joint", graph=True)
    assert len(begun) == 2


@pytest.mark.parametrize("progress", [0.0, 0.1, 1 / 3, 0.7, 0.95])
def test_weights_from_a_tensor_are_those_from_a_number(progress: float) -> None:
    loss, as_tensor = torch.tensor(0.7317), torch.tensor(progress, dtype=torch.float64)
    for weight in (partial(cosine, 1e-6, 1e-7), partial(rise, share=0.8), partial(rise, share=0.0)):
        one, other = (weighted(weight(each), loss) for each in (progress, as_tensor))
        assert torch.equal(one, other) and other.dtype == torch.float32


def test_the_caller_keeps_its_batch_and_its_terms() -> None:
    seen = []

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.inputs.data_ptr())
        return {"sum": batch.inputs.sum()}

    static = StaticStep(step, torch.device("cpu"))
    batches = [Batch(torch.full((2, 3), float(number)), torch.zeros(2), torch.zeros(2)) for number in range(4)]
    assert [float(static(batch)["sum"]) for batch in batches] == [0.0, 6.0, 12.0, 18.0]
    assert len(set(seen)) == 1 and float(batches[0].inputs.sum()) == 0.0


@pytest.mark.parametrize(
    ("method", "recipe", "reason"),
    [
        ("joint", {}, ""),
        ("imta", {}, ""),
        ("hdkd", {}, "this method has steps of its own, which look at more than one batch"),
        ("joint", {"devices": 2}, "several processes average their gradients between kernels"),
        ("joint", {"precision": "16"}, "in precision 16 every step waits to see whether its gradients are finite"),
    ],
)
def test_what_cannot_be_captured_says_why(method: str, recipe: dict[str, Any], reason: str) -> None:
    built = find(method).build()
    assert why_not(built, Recipe(**recipe), built.phases) == reason


def test_phases_with_steps_of_their_own_stay_as_they_are(tmp_path: Path) -> None:
    """The first phase on tensors that never move, the second as usual; to the bit."""
    plain, losses, _ = trained(tmp_path / "plain", method="imta")
    static, same_losses, told = trained(tmp_path / "static", method="imta", graph=True)
    assert told.notes == ["graph: phase 2 of 2 has steps of its own; kernels are started one by one there"]
    assert losses == same_losses and all(torch.equal(plain[name], static[name]) for name in plain)


def test_the_run_says_why(tmp_path: Path) -> None:
    *_, told = trained(tmp_path / "run", method="hdkd", graph=True)
    assert told.notes == [
        "graph: this method has steps of its own, which look at more than one batch; kernels are started one by one"
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_in_a_tensor_stays_where_it_is(optimizer: str) -> None:
    """What a graph reads, here on the CPU; a checkpoint of the other kind of optimizer changes nothing of it."""
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    recipe = Recipe(optimizer=optimizer, lr_backbone=0.01)
    static = optim.build(recipe, net.parameters(), [net.bias], static=True)
    plain = optim.build(recipe, other.parameters(), [other.bias])
    for each, module in ((static, net), (plain, other)):
        optim.set_rate(each, 0.5)
        module(torch.ones(1, 3)).sum().backward()
        each.step()
    rates = [group["lr"] for group in static.param_groups]
    optim.restore(static, plain.state_dict())
    optim.set_rate(static, 0.25)
    assert [float(rate) for rate in rates] == pytest.approx([0.025, 0.25])
    assert all(group["lr"] is rate and group["fused"] for group, rate in zip(static.param_groups, rates, strict=True))
    optim.restore(plain, static.state_dict())
    assert all(type(group["lr"]) is float and group["fused"] for group in plain.param_groups)
