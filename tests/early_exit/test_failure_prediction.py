"""The area under the ROC curve is the share of pairs in the right order; ties count half."""

import numpy as np
import pytest

from offramp.early_exit.exit_scores import Rule
from offramp.early_exit.failure_prediction import auroc, of_exits


def test_it_counts_pairs_in_the_right_order() -> None:
    generator = np.random.default_rng(0)
    score, right = generator.integers(0, 9, 60).astype(np.float32), generator.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[right] for b in score[~right]]
    assert auroc(score, right) == pytest.approx(np.mean(pairs))
    assert auroc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True])) == 1.0
    assert auroc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5


def test_without_both_kinds_there_is_no_ranking() -> None:
    assert auroc(np.ones(3), np.ones(3, bool)) is None and auroc(np.ones(3), np.zeros(3, bool)) is None


def test_the_temperature_leaves_the_order_of_two_classes_and_changes_the_calibration() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(2, 200, 2)).astype(np.float32)
    labels = (logits[0, :, 1] + generator.normal(size=200) > logits[0, :, 0]).astype(np.int64)
    cold, warm = of_exits(logits, labels), of_exits(logits, labels, Rule(temperatures=(5.0, 5.0)))
    assert cold == pytest.approx(warm) and cold[0] is not None and cold[0] > 0.6
