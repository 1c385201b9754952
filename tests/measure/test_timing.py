"""Side-by-side measurement: the order of the rounds and what is counted, never how long anything took."""

import pytest

from offramp.measure.timing import medians, side_by_side


def test_rounds_are_interleaved_and_the_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = side_by_side(runs, rounds=3, warm_up=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_without_rounds_there_is_nothing_to_report() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        side_by_side({"a": lambda: None}, rounds=0)


def test_medians() -> None:
    assert medians({"a": [3.0, 1.0, 2.0], "b": [4.0, 1.0]}) == {"a": 2.0, "b": 2.5}
