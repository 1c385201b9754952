"""The papers' analyses against golden numbers, and at the edges."""

import json
from pathlib import Path

import numpy as np
import pytest

from offramp.study import analyses

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())


def _right():
    n, k = np.arange(28), np.arange(4)[:, None]
    return (n * n + 3 * n * k + 5 * k) % 11 < 6 + k % 2


def _logits(exit):
    n, c = np.arange(12)[:, None], np.arange(5)
    return 2.5 * (1 + 0.3 * exit) * np.sin(1 + 17 * exit + 5 * n + c)


def test_go_wrong_in_both_readings():
    golden, right = GOLDEN["go_wrong_when_deeper"], _right()
    result = analyses.go_wrong(right)
    assert [one.correct for one in result] == golden["correct_counts"][:3]
    assert [one.any_later for one in result] == pytest.approx(golden["at_least_one_later_wrong"], abs=1e-15)
    assert [one.all_later for one in result] == pytest.approx(golden["all_later_wrong"], abs=1e-15)


def test_go_wrong_of_an_exit_that_is_never_right_has_no_share():
    assert analyses.go_wrong(np.array([[False, False], [True, False]])) == [analyses.GoWrong(0, None, None)]


def test_agreement_with_the_final_exit():
    for golden, result in zip(GOLDEN["agreement_2x2"], analyses.agreement(_right()), strict=True):
        assert result == analyses.Agreement(
            both=golden["both_right"],
            final_only=golden["main_right_exit_wrong"],
            exit_only=golden["main_wrong_exit_right"],
            neither=golden["both_wrong"],
        )


def test_softmax_statistics():
    golden = GOLDEN["softmax_stats_main"]
    result = analyses.softmax_statistics(_logits(3), top=3)
    assert result.rank_means == pytest.approx(golden["sorted_mean"], rel=1e-13)
    assert result.entropy_top == pytest.approx(golden["entropy_top3_raw"], rel=1e-13)
    assert result.entropy_top_renormalised == pytest.approx(golden["entropy_top3_renorm"], rel=1e-13)
    assert result.entropy == pytest.approx(golden["entropy_all"], rel=1e-13)
    assert result.top == 3


def test_softmax_of_huge_logits_has_the_entropy_zero():
    result = analyses.softmax_statistics(np.array([[1e4, 0.0, -1e4]], np.float32))
    assert (result.rank_means, result.entropy, result.top) == ([1.0, 0.0, 0.0], 0.0, 3)


def test_dissimilarity():
    golden = GOLDEN["rdm_main"]
    result = analyses.dissimilarity(_logits(3))
    assert result[0] == pytest.approx(golden["row0"], abs=1e-13)
    assert np.linalg.norm(result) == pytest.approx(golden["fro"], rel=1e-13)
    assert np.isnan(analyses.dissimilarity(np.array([[1.0, 1.0], [0.0, 1.0]]))[0]).all()


def test_only_correct():
    right = np.array([[True, False, True, False], [False, True, True, False], [False, False, False, False]])
    assert [list(places) for places in analyses.only_correct(right)] == [[0], [1], []]


def test_samples_are_sorted_by_label_and_can_be_of_some_classes():
    labels = np.arange(1000) % 20
    every = analyses.sorted_sample(labels)
    assert len(every) == len(set(every)) == 500
    assert (np.diff(labels[every]) >= 0).all()
    some = analyses.sorted_sample(labels, classes=10)
    assert (len(some), set(labels[some])) == (500, set(range(10)))
    assert (every == analyses.sorted_sample(labels)).all()
    assert len(analyses.sorted_sample(labels[:7])) == 7


def test_relative_to_the_final_exit():
    assert analyses.relative([0.4, 0.8], [1, 4]) == [(0.25, 0.5), (1, 1)]
    with pytest.raises(ValueError, match="an accuracy or a cost of 0"):
        analyses.relative([0.4, 0.0], [1, 4])
    with pytest.raises(ValueError, match="got 1 and 2"):
        analyses.relative([0.4], [1, 4])
