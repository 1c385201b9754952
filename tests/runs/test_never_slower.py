"""Choices of exits are left out until the policy is nowhere slower than the plain network."""

from typing import Any

import pytest

from offramp.early_exit.calibrate import Outcome
from offramp.early_exit.policy import ExitPolicy
from offramp.runs.never_slower import TRIES, ratios, reach

PLAIN = (False, False, True)
SHARES = {(True, True, True): (0.5, 0.3, 0.2), (True, False, True): (0.5, 0.0, 0.5), PLAIN: (0.0, 0.0, 1.0)}


def outcome(enabled: tuple[bool, ...]) -> Outcome:
    shares = SHARES.get(enabled, (0.0,) * (len(enabled) - 1) + (1.0,))
    return Outcome(ExitPolicy(thresholds=(0.0,) * len(enabled), enabled=enabled), 0.9, 1.0, shares)


def price(overhead: float) -> Any:
    """Three stages of 1 ms, and so many for every early exit."""

    def of_choice(enabled: Any) -> list[float]:
        costs, running = [], 0.0
        for exit, on in enumerate(enabled):
            running += 1.0
            if on:
                costs.append(running + (overhead if exit < len(enabled) - 1 else 0.0))
                running = 0.0
        return costs

    return of_choice


def first(costs: dict[Any, Any]) -> tuple[Outcome, str]:
    """A search that finds the first choice best."""
    return outcome(next(iter(costs))), "found"


def test_the_time_of_a_policy_by_batch_size() -> None:
    # All go to exit 1 (1 + 1 ms), half to exit 2 (2 ms), a fifth to the end (1 ms): 3.2 of 3 ms.
    assert ratios(outcome((True, True, True)), {8: price(1.0)}) == pytest.approx({8: 3.2 / 3})
    assert ratios(outcome(PLAIN), {8: price(1.0), 1: price(0.0)}) == {8: 1.0, 1: 1.0}


@pytest.mark.parametrize(
    ("prices", "chosen"),
    [
        ({}, (True, True, True)),
        ({64: price(0.8)}, (True, True, True)),
        ({64: price(0.5), 1: price(1.0)}, (True, False, True)),  # at batch 1: 3.2 of 3, then 3
        ({1: price(9.0)}, PLAIN),
    ],
)
def test_exits_are_switched_off_until_it_pays_at_every_batch_size(prices: Any, chosen: Any) -> None:
    costs = {enabled: [1] * sum(enabled) for enabled in SHARES}
    (reached, word), result = reach(first, costs, prices)
    assert reached.policy.enabled == chosen and word == "found"
    assert all(ratio <= 1.02 for ratio in result.values()) and result.keys() == prices.keys()
    assert len(costs) == 3


def test_after_some_tries_the_plain_network_is_kept() -> None:
    calls = []
    choices = {(*(bool(number >> bit & 1) for bit in range(4)), True): [1] for number in range(15, -1, -1)}

    def search(costs: dict[Any, Any]) -> tuple[Outcome]:
        calls.append(len(costs))
        enabled = next(iter(costs))
        shares = (0.0,) * 4 + (1.0,)
        return (Outcome(ExitPolicy(thresholds=(0.0,) * 5, enabled=enabled), 0.9, 1.0, shares),)

    (reached,), _ = reach(search, choices, {1: price(1.0)})
    assert not any(reached.policy.enabled[:-1]) and calls == [*range(16, 16 - TRIES, -1), 1]


def test_a_goal_that_only_slower_policies_reach() -> None:
    def search(costs: dict[Any, Any]) -> tuple[Outcome, str]:
        if (True, True, True) not in costs:
            raise ValueError("no policy is that accurate")
        return first(costs)

    with pytest.raises(ValueError, match="that accurate; exits with which it is slower than the plain network"):
        reach(search, {key: [1] for key in SHARES}, {1: price(9.0)})
