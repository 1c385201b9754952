"""Learning rates at every place of a run, and the optimisers that get them."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from offramp.train import optim
from offramp.train.recipe import Recipe

STEPS = 10


def rates(**recipe: Any) -> list[float]:
    """The rate of every step of a run, as the loop asks for it."""
    built = Recipe(**recipe)
    total = built.epochs * STEPS
    return [optim.rate(built, step // STEPS, step / total) for step in range(total)]


def test_the_papers_milestones_switch_at_the_start_of_their_epochs() -> None:
    result = rates(epochs=200, lr=0.1)
    changes = [step for step in range(1, len(result)) if result[step] != result[step - 1]]
    assert changes == [75 * STEPS, 130 * STEPS, 180 * STEPS]
    assert [result[0], *(result[step] for step in changes)] == pytest.approx([0.1, 0.01, 0.001, 0.0001])


@pytest.mark.parametrize(
    ("epochs", "milestones", "switches"),
    [
        (300, (0.5, 0.75), [150, 225]),
        (100, (0.35, 0.6, 0.85), [35, 60, 85]),
        (90, (1 / 3, 2 / 3), [30, 60]),
        (10, (0.375, 0.65, 0.9), [4, 7, 9]),
        (1, (0.5,), []),
        (4, (), []),
    ],
)
def test_milestones_are_fractions_of_the_run(epochs: int, milestones: tuple[float, ...], switches: list[int]) -> None:
    result = rates(epochs=epochs, milestones=milestones, gamma=0.5)[::STEPS]
    assert [epoch for epoch in range(1, epochs) if result[epoch] != result[epoch - 1]] == switches
    assert result[-1] == pytest.approx(0.1 * 0.5 ** len(switches))


def test_a_constant_rate_is_constant() -> None:
    assert set(rates(epochs=5, schedule="constant", lr=0.3)) == {0.3}


def test_cosine_anneals_from_the_peak_towards_zero() -> None:
    result = rates(epochs=10, schedule="cosine", lr=0.2)
    assert result == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 100)) for step in range(100)])
    assert result[0] == 0.2 and result[50] == pytest.approx(0.1) and 0 < result[-1] < 1e-4


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_warm_up_rises_in_a_line_to_the_peak(schedule: Any) -> None:
    result = rates(epochs=10, schedule=schedule, lr=0.2, warmup=0.2)
    assert result[1:20] == pytest.approx([0.2 * step / 20 for step in range(1, 20)])
    assert 0 < result[0] < result[1] and result[20] == pytest.approx(0.2)
    if schedule == "cosine":
        assert result[60] == pytest.approx(0.1)
    if schedule == "step":
        assert (result[40], result[99]) == pytest.approx((0.02, 0.0002))


@pytest.mark.parametrize(("warmup", "peak"), [(0.0, 30), (0.5, 50)])
def test_one_cycle_rises_and_falls_once(warmup: float, peak: int) -> None:
    result = rates(epochs=10, schedule="onecycle", lr=0.2, warmup=warmup)
    assert result[0] == pytest.approx(0.2 / 25) and result[peak] == max(result) == pytest.approx(0.2)
    rise, fall = result[: peak + 1], result[peak:]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True) and 0 < fall[-1] < 1e-3


def test_the_optimisers_are_torchs_with_the_recipes_values() -> None:
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    sgd = optim.build(Recipe(lr=0.3, momentum=0.8, nesterov=True, weight_decay=1e-3), net.parameters())
    (group,) = sgd.param_groups
    assert isinstance(sgd, torch.optim.SGD) and group["params"] == [net.weight]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.8, True, 1e-3)
    adam = optim.build(Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05), net.parameters())
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (1e-3, 0.05)


def test_all_groups_get_the_rate() -> None:
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    built = torch.optim.SGD([{"params": one.parameters()}, {"params": two.parameters()}], lr=1.0)
    optim.set_rate(built, 0.25)
    assert [group["lr"] for group in built.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_that_a_loss_scaler_skips_leaves_no_trace(name: Any) -> None:
    """The first steps in precision 16 overflow as a rule, until the scale is small enough."""

    def steps(scales: list[float]) -> torch.Tensor:
        weight = nn.Parameter(torch.ones(3))
        optimizer = optim.build(Recipe(optimizer=name, lr=0.1, precision="16"), [weight])
        scaler = torch.amp.GradScaler("cpu")
        for scale in scales:
            scaler.scale(scale * weight.square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return weight.detach()

    torch.testing.assert_close(steps([math.inf, 1.0, math.inf, 1.0, 1.0]), steps([1.0, 1.0, 1.0]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_part_of_the_network_may_be_used_later_than_others(name: Any) -> None:
    """As by PyTorch's optimizers that are not fused; a fused one takes the first step of all parameters at once."""
    results = []
    for fused in (True, False):
        first, late = (nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = optim.build(Recipe(optimizer=name, lr=0.1), [first, late])
        optimizer.param_groups[0]["fused"] = fused
        for step in range(3):
            (first.square().sum() + (late.square().sum() if step else 0)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        results.append(torch.cat([first, late]).detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_do_not_depend_on_how_gradients_and_states_are_laid_out(name: Any) -> None:
    """Fused kernels read memory in order: a contiguous momentum of a channels_last weight would be mixed up."""

    def steps(layout: torch.memory_format, restored: bool) -> torch.Tensor:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
        optimizer = optim.build(Recipe(optimizer=name, lr=0.1, weight_decay=0.01), [weight])
        assert optimizer.param_groups[0]["fused"]
        for _ in range(3):
            weight.grad = torch.randn(4, 3, 2, 2).to(memory_format=layout)
            optimizer.step()
            if restored:
                state = copy.deepcopy(optimizer.state_dict())
                for values in state["state"].values():
                    values.update({key: value.contiguous() for key, value in values.items() if value.dim() == 4})
                optim.restore(optimizer, state)
        return weight.detach()

    expected = steps(torch.channels_last, restored=False)
    for layout in (torch.channels_last, torch.contiguous_format):
        for restored in (False, True):
            torch.testing.assert_close(steps(layout, restored), expected, rtol=0, atol=0)
