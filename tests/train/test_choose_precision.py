"""Precision auto: the rule in short runs, a measurement in long ones, which leaves network and random numbers alone."""

from typing import Any

import pytest
import torch
from torch import nn

from offramp.net import Branch, Head, MultiExitNet
from offramp.train import choose_precision as chosen
from offramp.train.recipe import Recipe

SHAPE = (1, 6, 6)


def network(groups: int = 4) -> MultiExitNet:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Sequential(nn.Dropout(0.5))]
    stages[1].append(nn.Conv2d(4, 4, 3, padding=1, groups=groups))
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(4, 3)) for _ in stages])


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def choose(net: nn.Module, **recipe: Any) -> tuple[str, str]:
    how = Recipe(**{"device": "cpu", "batch_size": 4, "epochs": 2, "lr": 0.01, **recipe})
    return chosen.choose_precision(net, how, 40, SHAPE, 3)


def test_the_rule_of_short_runs_and_several_processes(able: None) -> None:
    assert choose(network()) == ("bf16", "") and choose(network(groups=1)) == ("bf16", "")
    assert choose(network(), epochs=500, devices=2) == ("bf16", "")
    on_gpu = chosen.candidates(network(), Recipe(device="cuda"))
    assert "bf16-dense" in chosen.candidates(network(), Recipe(device="cpu"))
    assert "bf16-dense" not in chosen.candidates(network(groups=1), Recipe(device="cpu")) + on_gpu


def test_depthwise_convolutions_stay_in_float32_where_the_network_is_compiled(able: None) -> None:
    assert choose(network(), compile=True) == ("bf16-dense", "")
    assert choose(network(groups=1), compile=True) == ("bf16", "")


def test_a_processor_without_bf16_has_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert choose(network(), epochs=500) == ("32", "")


def test_a_measurement_leaves_everything_as_it_was(able: None) -> None:
    net = network()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    precision, note = choose(net, epochs=90)  # 900 steps: 9 of them are a hundredth
    assert precision in ("bf16-dense", "bf16", "32")
    assert note.startswith(f"precision {precision}, by steps of 4 images: bf16 ") and ", 32 " in note
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(parameter.grad is not None for parameter in net.parameters())


def test_the_fastest_is_taken_if_it_is_clearly_faster(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for fp32, best in ((0.96, "32"), (0.98, "bf16")):
        seconds = {"bf16": 1.0, "bf16-dense": 2.0, "32": fp32}
        monkeypatch.setattr(chosen, "_measure", lambda *_, seconds=seconds: (seconds, 4))
        assert choose(network(), epochs=90)[0] == best


def test_batches_are_made_smaller_where_steps_are_slow(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def timed(step: Any, inputs: torch.Tensor) -> float:
        sizes.append(len(inputs))
        return 0.4 * len(inputs)

    monkeypatch.setattr(chosen, "_timed", timed)
    assert "by steps of 2 images" in choose(network(), epochs=500, batch_size=20)[1]
    assert sizes == [8, 8] + [2] * 9  # 10 s are for 9 steps
