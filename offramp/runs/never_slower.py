"""Policies that are not slower than the plain network, whatever the batch size: else exits are switched off."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from offramp.lookup import with_parameters

if TYPE_CHECKING:
    from offramp.early_exit.calibrate import Outcome

SLACK = 1.02
"""How many times the plain network's milliseconds a policy may take."""
TRIES = 8
"""Choices of exits that are tried in turn; then the plain network is kept."""

Price = Callable[[Sequence[bool]], Sequence[int | float]]
Costs = dict[tuple[bool, ...], list[Any]]
Reached = TypeVar("Reached", bound=tuple[Any, ...])


def ratios(outcome: "Outcome", prices: Mapping[int, Price]) -> dict[int, float]:
    """The milliseconds of a policy over those of the plain network, by batch size.

    Args:
        prices: by batch size, the milliseconds of every segment of a choice of exits.
    """
    enabled = outcome.policy.enabled
    plain = (*(False for _ in enabled[1:]), True)
    shares = [share for share, on in zip(outcome.shares, enabled, strict=True) if on]
    result = {}
    for size, price in prices.items():
        segments, total, reached = price(enabled), 0.0, 1.0
        for cost, share in zip(segments, shares, strict=True):
            total += reached * cost
            reached -= share
        result[size] = total / price(plain)[0]
    return result


def reach(
    search: Callable[[Costs], Reached], costs: Costs, prices: Mapping[int, Price]
) -> tuple[Reached, dict[int, float]]:
    """What a search reaches with the choices of exits that are nowhere slower than the plain network by more than 2 %.

    A choice that is slower is left out and the search repeated.

    Args:
        search: of a policy among these choices of exits; its first result is the outcome.
        costs: of every choice of exits, the plain network among them.
        prices: as in `ratios`; none: every choice is allowed.
    Returns:
        What the search reached, and its `ratios`.
    Raises:
        ValueError: if the goal is reached by slower choices alone.
    """
    left, slow = dict(costs), set[int]()
    for attempt in range(TRIES + 1):
        try:
            reached = search(left)
        except ValueError as error:
            if not slow:
                raise
            sizes = ", ".join(map(str, sorted(slow)))
            raise with_parameters(
                ValueError(
                    f"{error}; exits with which it is slower than the plain network at batch size {sizes} are excluded"
                ),
                "never_slower_at",
            ) from None
        by_batch = ratios(reached[0], prices)
        slower = {size for size, ratio in by_batch.items() if ratio > SLACK}
        if not slower:
            return reached, by_batch
        slow |= slower
        enabled = reached[0].policy.enabled
        plain = (*(False for _ in enabled[1:]), True)
        left.pop(enabled)
        if attempt == TRIES - 1:
            left = {plain: costs[plain]}
    raise AssertionError("unreachable: the plain network is never slower than itself")
