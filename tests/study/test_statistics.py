"""Means, deviations and intervals are those of tables and of examples worked by hand."""

import math

import pytest

from offramp.study.statistics import mean, paired, t_below, t_quantile

# 97.5 % and 99.5 % points of Student's t as every table prints them
TABLE = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    5: (2.571, 4.032),
    9: (2.262, 3.250),
    10: (2.228, 3.169),
    29: (2.045, 2.756),
    30: (2.042, 2.750),
    120: (1.980, 2.617),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    printed = TABLE[freedom]
    assert t_quantile(0.975, freedom) == pytest.approx(printed[0], abs=6e-4)
    assert t_quantile(0.995, freedom) == pytest.approx(printed[1], abs=6e-4)
    assert t_quantile(0.025, freedom) == pytest.approx(-printed[0], abs=6e-4)


def test_one_and_two_degrees_of_freedom_have_closed_forms() -> None:
    for value in (-3.0, -0.5, 0.0, 0.1, 1.0, 7.5):
        assert t_below(value, 1) == pytest.approx(0.5 + math.atan(value) / math.pi)
        assert t_below(value, 2) == pytest.approx(0.5 + value / (2 * math.sqrt(2 + value**2)))
    p = 0.975
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))), rel=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8])
def test_the_probability_is_the_integral_of_the_density(freedom: int) -> None:
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    steps, end = 20_000, 1.7
    middles = ((step + 0.5) * end / steps for step in range(steps))
    area = math.fsum(scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2) for x in middles) * end / steps
    assert t_below(end, freedom) == pytest.approx(0.5 + area, abs=1e-8)


def test_many_degrees_of_freedom_come_near_the_normal_distribution() -> None:
    assert t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(("probability", "freedom"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_a_quantile_that_does_not_exist(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match=r"t needs a probability in \(0, 1\) and at least 1 degree of freedom"):
        t_quantile(probability, freedom)


def test_mean_and_deviation_by_hand() -> None:
    result = mean([2.0, 4.0, 9.0])  # 5; squares 9 + 1 + 16 = 26, by n - 1 = 2: 13
    assert result.mean == 5 and result.deviation == pytest.approx(math.sqrt(13)) and result.runs == 3
    assert mean([0.25]) == (0.25, None, 1)
    with pytest.raises(ValueError, match="a mean needs at least one value"):
        mean([])


def test_paired_difference_by_hand() -> None:
    result = paired([0.61, 0.64, 0.60], [0.60, 0.61, 0.58])  # differences .01, .03, .02: mean .02, deviation .01
    half = 4.302652729911275 * 0.01 / math.sqrt(3)
    assert (result.mean, result.low, result.high) == pytest.approx((0.02, 0.02 - half, 0.02 + half))
    assert result.pairs == 3


def test_pairing_removes_what_seeds_share() -> None:
    result = paired([0.10, 0.50, 0.90], [0.09, 0.49, 0.89])
    assert result.low == pytest.approx(0.01) and result.high == pytest.approx(0.01)


def test_one_pair_has_no_interval() -> None:
    assert paired([0.5], [0.25]) == (0.25, None, None, 1)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="as many of one as of the other, got 2 and 1"):
        paired([0.1, 0.2], [0.1])
