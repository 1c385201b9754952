"""Settings of a step: the rule in short runs, a measurement in long ones, which leaves net and random numbers alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from offramp.net import Branch, Head, MultiExitNet
from offramp.train import fastest as measured
from offramp.train.fastest import Settings
from offramp.train.recipe import Recipe

SHAPE = (1, 6, 6)
RULE = Settings("bf16", "auto", None)


def network(groups: int = 4) -> MultiExitNet:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Sequential(nn.Dropout(0.5))]
    stages[1].append(nn.Conv2d(4, 4, 3, padding=1, groups=groups))
    return MultiExitNet(stages, [Branch(nn.Identity(), Head(4, 3)) for _ in stages])


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bf16, and four threads."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


def choose(net: nn.Module, **recipe: Any) -> tuple[Settings, str]:
    how = Recipe(**{"device": "cpu", "batch_size": 4, "epochs": 2, "lr": 0.01, **recipe})
    return measured.fastest(net, how, 40, SHAPE, 3)


def steps_take(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Settings, int], float]
) -> list[tuple[Settings, int]]:
    """Let a step take seconds(settings, samples) instead of its time; the steps that were taken."""
    taken: list[tuple[Settings, int]] = []
    monkeypatch.setattr(measured._Measured, "_step", lambda self, settings: settings)

    def timed(step: Any, inputs: torch.Tensor) -> float:
        taken.append((step, len(inputs)))
        return seconds(step, len(inputs))

    monkeypatch.setattr(measured, "_timed", timed)
    return taken


def test_the_rule_of_short_runs_and_several_processes(able: None) -> None:
    assert choose(network()) == (RULE, "") and choose(network(groups=1)) == (RULE, "")
    assert choose(network(), epochs=500, devices=2) == (RULE, "")
    on_gpu = measured.precisions(network(), Recipe(device="cuda"))
    assert "bf16-dense" in measured.precisions(network(), Recipe(device="cpu"))
    assert "bf16-dense" not in measured.precisions(network(groups=1), Recipe(device="cpu")) + on_gpu


def test_depthwise_convolutions_stay_in_float32_where_the_network_is_compiled(able: None) -> None:
    assert choose(network(), compile=True) == (RULE._replace(precision="bf16-dense"), "")
    assert choose(network(groups=1), compile=True) == (RULE, "")


def test_a_processor_without_bf16_has_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    settings, note = choose(network(), epochs=500)
    assert settings.precision == "32" and "bf16" not in note and "contiguous " in note
    assert choose(network(), epochs=500, memory_format="contiguous", threads=1) == (Settings("32", "contiguous", 1), "")


def test_what_the_user_set_is_left(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_take(monkeypatch, lambda settings, samples: 0.01)
    settings, note = choose(network(), epochs=500, memory_format="contiguous", threads=3)
    assert settings[1:] == ("contiguous", 3)
    assert "channels_last" not in note and ", contiguous, 3 threads, by steps of 4 images: bf16 " in note


def test_a_measurement_leaves_everything_as_it_was() -> None:
    net, threads = network(), torch.get_num_threads()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    settings, note = choose(net, epochs=500)
    assert settings.precision in note and ", contiguous " in note and " images: " in note
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(parameter.grad is not None for parameter in net.parameters())


def test_a_step_computes_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    net = network()
    net.stages[0].register_forward_pre_hook(
        lambda module, inputs: seen.append((torch.get_num_threads(), torch.is_autocast_enabled("cpu"), *inputs))
    )
    trials = measured._Measured(net, Recipe(device="cpu", batch_size=4, lr=0.01), SHAPE, 3, RULE, 2)
    seen.clear()
    for settings in (Settings("32", "contiguous", 1), Settings("bf16", "auto", None)):
        trials._step(settings)(torch.randn(2, 1, 6, 6))
    assert [(threads, half) for threads, half, _ in seen] == [(1, False), (torch.get_num_threads(), True)]


def test_the_fastest_is_taken_if_it_is_clearly_faster(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for fp32, best in ((0.96, "32"), (0.98, "bf16")):
        steps_take(monkeypatch, lambda settings, _, fp32=fp32: fp32 if settings.precision == "32" else 1.0)
        assert choose(network(), epochs=500)[0] == RULE._replace(precision=best)


def test_precision_then_memory_format_then_threads(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(settings: Settings, samples: int) -> float:
        threads = settings.threads or 4
        return (settings.precision == "bf16") + 2 * (settings.memory_format == "auto") + (threads - 2) ** 2 / 10 + 1

    taken = steps_take(monkeypatch, seconds)
    best = Settings("32", "contiguous", 2)
    assert choose(network(groups=1), epochs=500) == (
        best,
        "precision 32, contiguous, 2 threads, by steps of 2 images: bf16 4400 ms, 32 3400 ms; "
        "channels_last 3400 ms, contiguous 1400 ms; 4 threads 1400 ms, 2 threads 1000 ms; "
        "2 threads 1000 ms, 1 thread 1100 ms",
    )
    assert len(taken) == 2 + 4 * 2 * measured.ROUNDS


def test_batches_are_made_smaller_where_steps_are_slow(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = steps_take(monkeypatch, lambda settings, samples: 0.2 * samples)
    assert "by steps of 2 images" in choose(network(), epochs=2000, batch_size=20)[1]
    assert [samples for _, samples in taken] == [8, 8] + [2] * 3 * 7  # 10 s are for 21 steps
