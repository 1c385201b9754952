"""DBT's temperature: when it rises, when not, and that a resumed run goes on with it."""

import pytest
import torch

from offramp.methods import find
from offramp.methods._temperature import Temperature
from offramp.outputs import Batch, ExitOutputs

BATCH = Batch(torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), torch.arange(4))
SURE = ExitOutputs(20 * torch.eye(4, 3).repeat(3, 1, 1).requires_grad_(), (), ())
UNSURE = ExitOutputs(torch.zeros(3, 4, 3, requires_grad=True), (), ())


def test_it_rises_by_the_rate_after_each_sure_batch_and_only_then() -> None:
    objective = find("dbt").build(rate=1.5).objective
    temperatures = []
    for values in (SURE, UNSURE, SURE, UNSURE):
        objective(values, BATCH, 0.0)
        temperatures.append(objective.temperature.value().item())
    assert temperatures == [1.5, 1.5, 2.25, 2.25]


def test_it_stops_where_the_softened_exit_is_unsure() -> None:
    objective = find("dbt").build(rate=1.5).objective
    for _ in range(50):
        objective(SURE, BATCH, 0.0)
    settled = objective.temperature.value()
    objective(SURE, BATCH, 0.0)
    assert objective.temperature.value() == settled
    assert (SURE.logits[-1] / settled).softmax(-1).amax(-1).mean().item() <= 0.5


def test_the_step_uses_the_temperature_before_the_rise() -> None:
    rising = find("dbt").build().objective(SURE, BATCH, 0.0)
    constant = find("dbt").build(rising=False, temperature=1.0).objective(SURE, BATCH, 0.0)
    torch.testing.assert_close(rising, constant)


def test_evaluation_and_a_constant_temperature_never_rise() -> None:
    evaluated, constant = find("dbt").build().objective.eval(), find("dbt").build(rising=False).objective
    evaluated(SURE, BATCH, 0.0)
    constant(SURE, BATCH, 0.0)
    assert evaluated.temperature.value().item() == 1.0 and constant.temperature.value().item() == 4.0


def test_a_resumed_run_goes_on_with_it() -> None:
    objective, resumed = find("dbt").build().objective, find("dbt").build().objective
    objective(SURE, BATCH, 0.0)
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed.temperature.value(torch.float64), objective.temperature.value(torch.float64))
    assert resumed.temperature.value().item() == pytest.approx(1.05)


def test_the_count_survives_a_change_of_precision() -> None:
    temperature = Temperature(start=1.0, rising=True).bfloat16()
    assert temperature.rises.dtype == torch.int64


def test_a_nan_does_not_raise_the_temperature() -> None:
    temperature = Temperature(start=1.0, rising=True)
    temperature(torch.full((4, 3), torch.nan))
    assert temperature.rises.item() == 0


def test_scale_keeps_the_size_of_five_exits() -> None:
    free, one = (
        find("dbt").build(rising=False, scale=scale).objective(SURE, BATCH, 0.0)["ce"] for scale in (None, 1.0)
    )
    torch.testing.assert_close(free, 10 / 3 * one)
