"""The cost at an accuracy: a mixture of two policies fitted on cal, reported on test."""

import numpy as np
import pytest

from offramp.early_exit.calibrate import choices
from offramp.early_exit.curves import area
from offramp.early_exit.frontier import FrontierPoint, at_accuracy, frontier


def random_logits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three exits, each better than the one before, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, n)
    logits = generator.normal(size=(3, n, 5)).astype(np.float32)
    for exit in range(3):
        logits[exit, np.arange(n), labels] += 1 + exit
    return logits, labels


def costs(branch: float) -> dict[tuple[bool, ...], list[float]]:
    """Segments of 10 per stage, and `branch` for every early exit that is enabled."""
    priced = {}
    for enabled in choices(3):
        segments, running = [], 0.0
        for on, early in zip(enabled, (1, 1, 0), strict=True):
            running += 10 + branch * early * on
            if on:
                segments.append(running)
                running = 0.0
        priced[enabled] = segments
    return priced


def test_a_frontier_rises_and_ends_at_the_plain_network_or_above() -> None:
    cal, test = random_logits(400, 0), random_logits(500, 1)
    points = frontier(cal, test, {"macs": costs(1.0), "ms": costs(2.0)})
    plain = float((cal[0][-1].argmax(1) == cal[1]).mean())
    assert points[0].cal_cost <= 11 * 1.001 and points[-1].cal_cost == 30
    assert any(point.cal_accuracy == plain for point in points if point.cal_cost == 30)
    assert all(point.costs["ms"] >= point.costs["macs"] for point in points)
    place = at_accuracy(points, plain)
    assert place is not None and place.costs["macs"] < 30
    assert abs(place.accuracy - float((test[0][-1].argmax(1) == test[1]).mean())) < 0.05
    assert at_accuracy(points, max(point.cal_accuracy for point in points) + 0.01) is None


def test_between_two_policies_lies_their_mixture() -> None:
    def point(accuracy: float, cost: float) -> FrontierPoint:
        return FrontierPoint(accuracy, cost, accuracy - 0.1, {"macs": cost + 1})

    points = [point(0.5, 10), point(0.6, 20), point(0.61, 29), point(0.7, 30)]
    middle = at_accuracy(points, 0.65)
    assert middle is not None and middle.costs["macs"] == pytest.approx(26) and middle.accuracy == pytest.approx(0.55)
    assert at_accuracy(points, 0.2) == at_accuracy(points, 0.5), "no policy is cheaper"
    assert at_accuracy(points[:1], 0.5) is not None and at_accuracy([point(0.5, 10), point(0.4, 20)], 0.45) is not None


def test_the_area_is_the_mean_accuracy_over_all_budgets() -> None:
    points = [{"cost": 50, "accuracy": 0.4}, {"cost": 100, "accuracy": 0.8}, {"cost": 200, "accuracy": 0.9}]
    assert area(points, 100, 0.1) == pytest.approx(0.5 * 0.1 + 0.5 * 0.6)
    assert area(points[:1], 100, 0.1) == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)
    assert area([{"cost": 300, "accuracy": 0.9}], 100, 0.1) == pytest.approx(0.1)
