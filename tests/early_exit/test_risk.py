"""Risk bounds against the worked example and exact probabilities."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.early_exit.risk import binomial_tail, conformal, fixed_sequence, samples_needed

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/golden.json").read_text())
EXAMPLE, VALIDITY = GOLDEN["risk_control"], GOLDEN["risk_control_validity"]
N, RISK, DELTA = EXAMPLE["n"], EXAMPLE["eps"], EXAMPLE["delta"]
LOSSES = 37 * np.arange(N)[None] % N < np.arange(21)[:, None] ** 2 / 10


def test_the_worked_example_counts_and_its_p_values() -> None:
    assert LOSSES.sum(1).tolist() == EXAMPLE["X"]
    result = [binomial_tail(count, N, RISK) for count in EXAMPLE["X"]]
    np.testing.assert_allclose(result, EXAMPLE["p_values"], rtol=1e-10)
    assert binomial_tail(EXAMPLE["x_star"], N, RISK) == pytest.approx(EXAMPLE["p_at_xstar"], rel=1e-10)
    assert binomial_tail(EXAMPLE["x_star"] + 1, N, RISK) == pytest.approx(EXAMPLE["p_at_xstar_plus1"], rel=1e-10)


def test_the_worked_example_stops_before_the_first_failure() -> None:
    # the example counts from the plain network, index 0, which is no policy of the path
    assert fixed_sequence(LOSSES[1:].sum(1), N, RISK, DELTA) == EXAMPLE["fst_index"]
    counts = np.array(EXAMPLE["nonmonotone_X"])
    assert fixed_sequence(counts[1:], N, RISK, DELTA) == EXAMPLE["nonmonotone_index"]


def test_the_worked_example_of_conformal_risk_control() -> None:
    assert conformal(LOSSES[1:], RISK) == EXAMPLE["crc_index"]


def test_a_sample_lost_once_stays_lost() -> None:
    losses = np.zeros((3, 39), bool)
    losses[0, :2] = losses[1, 2:4] = losses[2, 4:6] = True
    # on average every policy loses 2 of 39; the largest losses so far are 2, 4 and 6
    assert [conformal(losses, risk) for risk in (0.07, 0.075, 0.125, 0.175)] == [0, 1, 2, 3]


def test_exact_validity_and_power() -> None:
    most = EXAMPLE["x_star"]
    for name, chance in VALIDITY.items():
        assert binomial_tail(most, N, float(name.removeprefix("R="))) == pytest.approx(chance, rel=1e-9)
    assert VALIDITY["R=0.05"] <= DELTA


def test_how_many_samples_it_takes() -> None:
    assert samples_needed(0.0, RISK, DELTA) == EXAMPLE["min_n_zero_loss"] == 45
    assert samples_needed(0.0, 0.01, 0.05) == math.ceil(math.log(0.05) / math.log(0.99))
    assert samples_needed(0.0, 0.01) == 99
    assert samples_needed(0.01, 0.01, 0.05) is None and samples_needed(0.02, 0.01) is None
    some = samples_needed(0.005, 0.01, 0.05)
    assert some is not None and binomial_tail(math.ceil(0.005 * some), some, 0.01) <= 0.05


@pytest.mark.parametrize(("count", "n", "risk"), [(-1, 10, 0.1), (11, 10, 0.1), (1, 10, 0.0), (1, 10, 1.0)])
def test_numbers_that_are_no_tail(count: int, n: int, risk: float) -> None:
    with pytest.raises(ValueError, match=r"a binomial tail needs a count in 0 … 10 and a risk in \(0, 1\)"):
        binomial_tail(count, n, risk)


def test_a_tail_by_enumeration() -> None:
    for count in range(6):
        exact = sum(math.comb(6, x) * 0.3**x * 0.7 ** (6 - x) for x in range(count + 1))
        assert binomial_tail(count, 6, 0.3) == pytest.approx(exact, rel=1e-12)
