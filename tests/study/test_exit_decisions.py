"""Where samples exit: the same as the runtime says; extremes and classes against counts by hand."""

import numpy as np
import pytest
import torch

from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.study.exit_decisions import ExitDecisions, apply_policy, by_class, extremes, single_exit

POLICIES = [
    ExitPolicy(thresholds=(0.6, 0.7, 0.0), enabled=(True, True, True)),
    ExitPolicy(thresholds=(0.2, 0.7, 0.0), enabled=(True, False, True), score="margin", temperatures=(0.5, 1.0, 2.0)),
    ExitPolicy(thresholds=(0.3, 0.5, 0.0), enabled=(True, True, True), score="entropy", answer="geometric"),
    ExitPolicy(
        thresholds=(0.0, 0.0, 0.0), enabled=(True, True, True), score="patience", patience=2, answer="arithmetic"
    ),
    ExitPolicy(thresholds=(1e8, 1e8, 1e8), enabled=(False, False, True)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.score)
@pytest.mark.parametrize("n", [1, 3000])
def test_everybody_leaves_where_the_runtime_lets_them(policy: ExitPolicy, n: int) -> None:
    logits = torch.randn(3, n, 4, generator=torch.Generator().manual_seed(0)) * 2
    labels = np.arange(n) % 4
    left = apply_policy(policy, logits.numpy(), labels)

    def segment(exit: int):  # type: ignore[no-untyped-def]
        return lambda state, carry: (state, carry, logits[exit][state])

    parts = [segment(exit) for exit in range(3) if policy.enabled[exit]]
    values = answer(parts, policy, torch.arange(n))
    assert left.exit.tolist() == values.exit.tolist()
    assert left.answer.tolist() == values.logits.argmax(1).tolist()
    assert left.score == pytest.approx(values.score.numpy(), abs=1e-6)
    told = values.logits.log_softmax(1)[torch.arange(n), torch.from_numpy(labels)]
    assert left.likelihood == pytest.approx(told.numpy(), abs=1e-5)
    assert sum(left.shares(3)) == pytest.approx(1)


def test_staying_at_one_exit_judges_it_alone() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 100.0]], np.float32)
    left = single_exit(logits, np.array([1, 1]), 2)
    assert left.exit.tolist() == [2, 2] and left.answer.tolist() == [0, 1]
    assert left.score == pytest.approx([1 / (1 + np.exp(-2)), 1.0])
    assert left.likelihood[0] == pytest.approx(-2 - np.log1p(np.exp(-2)))


def test_certain_answers_are_still_told_apart() -> None:
    logits = np.array([[20.0, 0.0], [30.0, 0.0], [25.0, 0.0]], np.float32)
    left = single_exit(logits, np.zeros(3, np.int64), 0)
    assert extremes(left, 0, 1) == ([1], [0])


DECISIONS = ExitDecisions(
    exit=np.array([0, 0, 1, 0, 0, 1]),
    score=np.ones(6),
    answer=np.array([0, 1, 0, 0, 1, 1]),
    likelihood=np.array([-0.1, -0.3, -2.0, -0.1, -0.2, -1.0]),
)


@pytest.mark.parametrize(
    ("exit", "most", "wanted"),
    [
        (0, 1, ([0], [1])),
        (0, 2, ([0, 3], [1, 4])),
        (0, 9, ([0, 3], [1, 4])),  # no image is easy and hard at once
        (1, 5, ([5], [2])),
        (2, 5, ([], [])),
        (0, 0, ([], [])),
    ],
)
def test_easiest_and_hardest(exit: int, most: int, wanted: tuple[list[int], list[int]]) -> None:
    assert extremes(DECISIONS, exit, most) == wanted


def test_an_odd_image_is_easy() -> None:
    one = ExitDecisions(np.array([1]), np.ones(1), np.array([0]), np.array([-1.0]))
    assert extremes(one, 1, 3) == ([0], [])


def test_classes_from_the_cheapest_to_the_costliest() -> None:
    rows = by_class(DECISIONS, np.array([0, 1, 0, 0, 1, 1]), [10, 40])
    assert [row.label for row in rows] == [0, 1]  # equal costs: in their own order
    rows = by_class(DECISIONS, np.array([0, 1, 2, 0, 2, 1]), [10, 40])
    assert [(row.label, row.samples, row.cost) for row in rows] == [(0, 2, 10.0), (1, 2, 25.0), (2, 2, 25.0)]
    assert rows[1].shares == [0.5, 0.5] and rows[1].accuracy == 1.0 and rows[2].accuracy == 0.0
