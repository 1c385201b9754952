"""The two curves against MSDNet's worked example."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from offramp.early_exit.curves import anytime, best_per_budget, budgeted

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/golden.json").read_text())["dynamic_eval"]
LABELS = (2 * np.arange(12) + 1) % 5


def logits(off: int) -> ndarray:
    k, n, c = np.arange(4)[:, None, None], np.arange(12)[:, None], np.arange(5)
    return (2.5 * (1 + 0.3 * k) * np.sin(1 + off + 17 * k + 5 * n + c)).astype(np.float32)


def test_budgeted_points_are_those_of_the_worked_example() -> None:
    points = budgeted((logits(0), LABELS), (logits(3), LABELS), GOLDEN["flops"])
    assert len(points) == 39 and points[0]["q"] == 0.05 and points[-1]["q"] == 1.95
    for run in GOLDEN["runs"]:
        (there,) = [point for point in points if point["q"] == run["p"]]
        assert 100 * there["accuracy"] == pytest.approx(run["test"]["acc"])
        assert there["cost"] == pytest.approx(run["test"]["flops"])
        np.testing.assert_allclose(there["thresholds"], run["T"], rtol=1e-5)
        np.testing.assert_allclose(there["shares"], np.bincount(run["test"]["exit"], minlength=4) / 12)
    assert json.loads(json.dumps(points)) == points


def test_anytime_is_every_exit_on_everything() -> None:
    z = logits(3)
    result = anytime(z, LABELS, [1, 2, 4, 7])
    assert [point["cost"] for point in result] == [1, 2, 4, 7]
    assert [point["accuracy"] for point in result] == pytest.approx((z.argmax(2) == LABELS).mean(1))


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="the calibration split has no samples"):
        anytime(logits(0)[:, :0], LABELS[:0], [1, 2, 4, 7])


def test_the_published_curve_ends_at_39_twentieths() -> None:
    z, n = logits(0)[:, np.arange(400) % 12] + np.linspace(0, 1e-3, 400, dtype=np.float32)[:, None], 400
    z[:, :, 0] += np.linspace(0, 1, 400, dtype=np.float32)  # no ties
    labels = LABELS[np.arange(n) % 12]
    shares = budgeted((z, labels), (z, labels), GOLDEN["flops"])[-1]["shares"]
    wanted = np.floor(n * 1.95 ** np.arange(1, 5) / sum(1.95 ** np.arange(1, 5))) / n
    np.testing.assert_allclose(shares[:-1], wanted[:-1])


def test_the_held_out_values_of_a_point_are_its_values_where_it_was_fitted() -> None:
    here = (logits(0), LABELS)
    for point in budgeted(here, here, GOLDEN["flops"]):
        assert point["held_out_accuracy"] == point["accuracy"]
        assert point["held_out_cost"] == pytest.approx(point["cost"])


def test_the_best_model_of_a_budget_is_chosen_on_held_out_data() -> None:
    def point(held_out: float, cost: float, test: float) -> dict[str, float]:
        return {"held_out_accuracy": held_out, "held_out_cost": cost, "accuracy": test, "cost": cost + 1}

    models = {
        "small": [point(0.5, 10, 0.9), point(0.6, 20, 0.55)],
        "large": [point(0.4, 15, 0.99), point(0.8, 30, 0.7)],
    }
    cheap, middle, dear = best_per_budget(models, [10, 29, 100])
    assert cheap == {**point(0.5, 10, 0.9), "model": "small", "budget": 10}
    assert middle is not None and (middle["model"], middle["accuracy"]) == ("small", 0.55)  # not the best on test
    assert dear is not None and (dear["model"], dear["accuracy"]) == ("large", 0.7)
    assert best_per_budget(models, [9]) == [None]
    tie = {"a": [point(0.5, 20, 0.1)], "b": [point(0.5, 10, 0.2)]}
    (cheaper,) = best_per_budget(tie, [50])
    assert cheaper is not None and cheaper["model"] == "b"
