"""The model of many GPUs: its formulas at values that can be computed by hand."""

import pytest

from offramp.measure.scaling_model import BUCKET, Machine, step

SLOW = Machine(peak=6e9, utilisation=1.0, gpus=2, inside=8e6, between=4e6, latency_inside=0.0, latency_between=0.5)


def test_one_process_exchanges_nothing() -> None:
    alone = step(1_000_000, 1e6, 100, 1, SLOW)
    assert (alone.compute, alone.volume, alone.exchange, alone.exposed, alone.efficiency) == (0.1, 0, 0, 0, 1)


def test_the_exchange_is_that_of_a_ring_and_hides_behind_the_backward_pass() -> None:
    two = step(1_000_000, 1e6, 900, 2, SLOW)  # 4 MB of gradients, one bucket, at 8 MB/s
    assert (two.volume, two.exchange, two.compute) == pytest.approx((4e6, 0.5, 0.9))
    assert two.exposed == pytest.approx(0.5)  # of a single bucket nothing is hidden
    many = step(BUCKET, 1e6, 900, 2, SLOW)  # four buckets: the last shows, or what is longer than the backward pass
    assert many.exchange == pytest.approx(4 * BUCKET / 8e6)
    assert many.exposed == pytest.approx(max(many.exchange - 0.6, many.exchange / 4))


def test_beyond_a_machine_the_network_limits() -> None:
    four = step(1_000_000, 1e6, 900, 4, SLOW)
    assert four.volume == pytest.approx(6e6) and four.exchange == pytest.approx(2 * 3 * 0.5 + 6e6 / 4e6)
    assert four.efficiency == pytest.approx(0.9 / (0.9 + four.exposed)) and four.efficiency < 0.5


def test_nothing_to_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters, macs, samples and processes must be positive"):
        step(0, 1.0, 1, 1)
