"""Fisher's exact test, and the warning that rests on it."""

import pytest

from offramp.measure.two_samples import fisher, warning


def test_the_lady_tasting_tea_and_symmetry() -> None:
    assert fisher((3, 1), (4, 4)) == pytest.approx(34 / 70)  # both tails of 17/70
    assert fisher((4, 0), (4, 4)) == pytest.approx(2 / 70)
    assert fisher((0, 4), (4, 4)) == pytest.approx(2 / 70)
    assert fisher((5, 5), (5, 5)) == fisher((0, 0), (5, 7)) == 1
    assert fisher((1, 9), (10, 10)) == pytest.approx(0.001093, rel=1e-3)


def test_the_warning_is_given_only_beyond_chance() -> None:
    said = warning(0.875, 120, 0.383, 120)
    assert said.startswith(
        "the plain network is right on 87.5 % of cal (120) but 38.3 % of test (120), more than chance"
    )
    assert warning(0.93, 120, 0.90, 360) == warning(1.0, 3, 0.5, 2) == ""
    assert warning(0.80, 5000, 0.76, 10000)  # large samples tell apart what small ones cannot
