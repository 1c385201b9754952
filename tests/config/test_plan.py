"""exits=auto: places and a structure whose first exit leaves room for the goal; what cannot be reached is refused."""

import re

import pytest

from offramp.config import Config
from offramp.config.plan import gains_text
from offramp.lookup import ParameterError
from offramp.runs.info import NetworkInfo, info


def planned(**options: object) -> NetworkInfo:
    result = info(Config(**{"width": 8, "image_size": 32, "exits": "auto", **options}), classes=10)  # type: ignore[arg-type]
    assert isinstance(result, NetworkInfo)
    return result


@pytest.mark.parametrize(("goal", "most"), [(0.9, 0.5), (0.5, 0.9)])
def test_the_first_exit_costs_half_of_the_goal_at_most_or_less_than_the_goal(goal: float, most: float) -> None:
    result = planned(goal_macs=goal)
    assert result.branch == "byot" and result.macs[0] <= most * goal * result.macs[-1]
    assert len(result.notes) == 1 and "byot exits after 1, " in result.notes[0]
    assert result.cheapest["byot"] == pytest.approx(result.macs[-1] / result.macs[0])


def test_the_given_structure_is_tried_first() -> None:
    assert planned(goal_macs=0.9, branch="linear").branch == "linear"


def test_a_goal_that_no_exit_reaches_is_refused_with_what_they_reach() -> None:
    with pytest.raises(ParameterError, match=r"goal_macs=0.01: no exit of resnet18 is that cheap: early exit is ") as e:
        planned(goal_macs=0.01)
    least = re.fullmatch(r".*; take goal_macs=([\d.]+) or more", str(e.value))
    assert least
    planned(goal_macs=float(least[1]))
    with pytest.raises(ParameterError):
        planned(goal_macs=float(least[1]) - 0.01)


def test_what_belongs_together_is_given_together() -> None:
    for options, says in (
        ({"exits": "auto"}, "exits=auto and goal_macs=SHARE go together"),
        ({"goal_macs": 0.4}, "exits=auto and goal_macs=SHARE go together"),
        ({"exits": "auto", "goal_macs": 1.5}, "goal_macs must be a share in"),
    ):
        with pytest.raises(ParameterError, match=says):
            Config(**options)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="omit exits_at and exits_after"):
        planned(goal_macs=0.4, exits_at=(1,))


def test_places_in_an_external_model_are_layers(my_nets: str) -> None:
    result = planned(net=f"python:{my_nets}:small", goal_macs=0.8, branch="linear", width=None, image_size=16)
    assert result.macs[0] <= 0.4 * result.macs[-1] and "exits after" in result.notes[0]


def test_how_cheap_exits_get_is_said_by_structure() -> None:
    assert gains_text({"sketch": 1.62, "byot": 4.21}) == "at most 1.6 times cheaper with sketch; 4.2 times with byot"
    result = info(Config(width=8, image_size=32), classes=10)
    assert isinstance(result, NetworkInfo) and list(result.cheapest) == ["sketch", "byot", "linear"]
    assert 1 < result.cheapest["sketch"] < result.cheapest["byot"] < result.cheapest["linear"]
