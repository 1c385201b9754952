"""Temperatures: those that were put in come out, and nothing near is likelier."""

import numpy as np
import pytest

from offramp.early_exit.temperature import fit, nll


def test_the_temperature_that_was_put_in_comes_out() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(5000, 4)) * 2
    p = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    labels = (p.cumsum(1) < rng.random((5000, 1))).sum(1).clip(0, 3)
    wanted = (0.5, 1.0, 3.0)
    result = fit(np.stack([honest * t for t in wanted]).astype(np.float32), labels)
    np.testing.assert_allclose(result, wanted, rtol=0.05)


def test_nothing_near_is_likelier_and_extremes_stay_in_range() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1, 50, 3))
    labels = rng.integers(0, 3, 50)
    (result,) = fit(z, labels)
    assert all(nll(z[0] / result, labels) <= nll(z[0] / (result * factor), labels) for factor in (0.95, 1.05))
    right = np.zeros((1, 9, 3))
    right[0, :, 1] = 1.0
    assert fit(right, np.ones(9, int))[0] == pytest.approx(0.05, rel=1e-3)
    assert fit(right, np.zeros(9, int))[0] == pytest.approx(20, rel=1e-3)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="temperatures cannot be fitted on no samples"):
        fit(np.zeros((2, 0, 3)), np.zeros(0, int))


def test_logits_that_are_not_finite_are_an_error() -> None:
    logits = np.zeros((2, 5, 3))
    logits[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"temperatures: 1 value is not finite \(NaN or infinite\) in logits"):
        fit(logits, np.zeros(5, int))
