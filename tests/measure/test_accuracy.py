"""Accuracy, ensembles and calibration error, against counts by hand."""

import json

import pytest
import torch

from offramp.measure.accuracy import calibration_error, ensemble, reliability, summary, top_k
from offramp.outputs import Trace

# two exits, four samples, three classes
LOGITS = torch.tensor(
    [
        [[3.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 3.0], [2.0, 1.0, 0.0]],
        [[0.0, 0.5, 0.2], [0.0, 0.1, 0.2], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0]],
    ]
)
LABELS = torch.tensor([0, 2, 2, 1])


def test_top_k_by_hand() -> None:
    assert top_k(LOGITS, LABELS) == [0.5, 0.75]
    assert top_k(LOGITS, LABELS, 2) == [1.0, 0.75]


def test_of_equal_logits_the_first_is_the_answer() -> None:
    """As everywhere else: two figures of one exit on the same images are equal."""
    equal = torch.zeros(1, 40, 100)
    equal[0, :, 7] = equal[0, :, 50] = equal[0, :, 90] = 1.0
    assert top_k(equal, torch.full((40,), 7)) == [1.0] and top_k(equal, torch.full((40,), 50)) == [0.0]
    assert (equal.numpy()[0].argmax(1) == 7).all()


def test_top_k_of_fewer_classes_than_k_is_always_right() -> None:
    assert top_k(LOGITS, LABELS, 5) == [1.0, 1.0]


def test_the_ensemble_is_the_sum_of_logits() -> None:
    assert torch.equal(ensemble(LOGITS), LOGITS[0] + LOGITS[1])
    assert top_k(ensemble(LOGITS)[None], LABELS) == [0.75]  # the second sample's first exit outvotes the second


def logits_of(confidence: list[float]) -> torch.Tensor:
    """One exit that answers class 0 of two with these confidences."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], -1)[None]


def test_calibration_error_by_hand() -> None:
    sure = [0.95, 0.91, 0.65, 0.55, 0.55]
    labels = torch.tensor([0, 1, 0, 0, 1])
    # ten bins: (.9, 1] has 2 samples, 1 right, confidence 1.86; (.6, .7] one, right; (.5, .6] two, one right
    expected = (abs(1 - 1.86) + abs(1 - 0.65) + abs(1 - 1.1)) / 5
    assert calibration_error(logits_of(sure), labels, bins=10) == [pytest.approx(expected)]


def test_a_confidence_of_one_belongs_to_the_last_bin_and_edges_to_the_bin_below() -> None:
    certain = torch.tensor([[[200.0, 0.0], [200.0, 0.0]]])
    assert calibration_error(certain, torch.tensor([0, 0])) == [0.0]
    assert calibration_error(certain, torch.tensor([1, 1])) == [1.0]
    # .5 is in (.4, .5] of ten bins, together with .45: one right, one wrong
    edge = torch.tensor([[[0.0, 0.0, -1000.0], [0.45, 0.30, 0.25]]], dtype=torch.float64)
    edge[0, 1] = edge[0, 1].log()
    assert calibration_error(edge, torch.tensor([0, 2]), bins=10) == [pytest.approx(abs(1 - 0.95) / 2)]


def test_every_exit_has_its_own_error() -> None:
    z = torch.cat([logits_of([0.9, 0.9]), logits_of([0.6, 0.6])])
    assert calibration_error(z, torch.tensor([0, 0])) == [pytest.approx(0.1), pytest.approx(0.4)]


def test_a_summary_is_plain_values() -> None:
    result = summary(Trace(LOGITS, LABELS, torch.arange(4), "test"))
    assert json.loads(json.dumps(result)) == result
    assert (result["split"], result["samples"], result["accuracy"]) == ("test", 4, [0.5, 0.75])
    assert (result["top5"], result["ensemble"]) == ([1.0, 1.0], 0.75)
    assert result["calibration_error"] == calibration_error(LOGITS, LABELS)


def test_without_labels_there_is_no_accuracy() -> None:
    with pytest.raises(ValueError, match="the trace of 'cal' has no labels, so there is no accuracy"):
        summary(Trace(LOGITS, None, torch.arange(4), "cal"))


def test_reliability_is_counted_by_bins_and_adds_up_to_the_calibration_error() -> None:
    confidence = torch.tensor([0.9, 0.95, 0.6, 0.55])
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1)[None]
    (result,) = reliability(logits, torch.tensor([0, 1, 0, 0]), bins=2)
    assert result.samples == (0, 4) and result.accuracy == (0.0, 0.75)
    assert result.confidence == pytest.approx((0.0, 0.75))
    assert result.error == pytest.approx(0.0, abs=1e-7)
    (finer,) = reliability(logits, torch.tensor([0, 1, 0, 0]), bins=10)
    assert sum(finer.samples) == 4 and finer.error == calibration_error(logits, torch.tensor([0, 1, 0, 0]), 10)[0]
