"""The two curves against MSDNet's worked example."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from offramp.early_exit.curves import anytime, budgeted

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
    found = anytime(z, LABELS, [1, 2, 4, 7])
    assert [point["cost"] for point in found] == [1, 2, 4, 7]
    assert [point["accuracy"] for point in found] == pytest.approx((z.argmax(2) == LABELS).mean(1))


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
