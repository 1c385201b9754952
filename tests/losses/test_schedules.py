"""Schedules at their ends, and powers by depth."""

import pytest
import torch

from offramp.losses.schedules import cosine, rising_powers


def test_cosine_begins_halves_and_ends() -> None:
    assert [cosine(3.0, 1.0, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([3.0, 2.0, 1.0])


def test_cosine_between_equal_ends_is_constant() -> None:
    assert cosine(0.3, 0.3, 0.77) == pytest.approx(0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_powers_have_full_precision(dtype: torch.dtype) -> None:
    powers = rising_powers(1.6, torch.zeros(4, 2, 3, dtype=dtype))
    assert powers.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert powers.tolist() == pytest.approx([1.0, 1.6, 2.56, 4.096])
