"""BEED's weights for any number of exits."""

import pytest
import torch

from offramp.methods.beed import balancing, ensemble, importances


@pytest.mark.parametrize("exits", [2, 3, 4, 7, 12])
def test_the_default_balance_keeps_the_first_exit_s_weight(exits: int) -> None:
    assert 2 - balancing(None, exits) ** (exits - 1) == pytest.approx(0.479125)


@pytest.mark.parametrize("exits", [2, 4, 7])
def test_the_largest_balance_is_admitted(exits: int) -> None:
    largest = 2 ** (1 / (exits - 1)) * (1 - 1e-12)
    assert balancing(largest, exits) == largest


def test_importances_are_shares() -> None:
    shares = importances(1.6, torch.zeros(5, 1, 2))
    assert shares.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(shares[1:] / shares[:-1], torch.full((4,), 1.6))


def test_the_ensemble_of_maps_is_shared_among_those_there_are() -> None:
    maps = [torch.full((2, 3), 1.0), None, torch.full((2, 3), 4.0, requires_grad=True)]
    mean = ensemble(maps, torch.tensor([0.1, 0.7, 0.2]))
    torch.testing.assert_close(mean, torch.full((2, 3), 3.0))
    assert not mean.requires_grad
