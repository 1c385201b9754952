"""Numbers as people read them."""

import pytest

from offramp.measure.units import at_least, count, percent, unit_of


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (1234567, "1.23 M"),
        (2.5e9, "2.50 G"),
        (3e12, "3,000.00 G"),
    ],
)
def test_counts(number: float | None, text: str) -> None:
    assert count(number) == text


def test_shares_and_units() -> None:
    assert [percent(share) for share in (0.7712, 1, None)] == ["77.12", "100.00", "–"]
    assert [unit_of(number)[1] for number in (5e9, 5e6, 5e3, 5, 0.5)] == ["G", "M", "k", "", ""]


@pytest.mark.parametrize(
    ("number", "budget"), [(0.60112, 0.602), (0.6, 0.6), (1.0, 1.0), (5_333_248, 5_340_000), (0.06883, 0.0689), (7, 7)]
)
def test_a_budget_is_rounded_up(number: float, budget: float) -> None:
    assert at_least(number) == pytest.approx(budget, rel=1e-12) and at_least(number) >= number * (1 - 1e-12)
