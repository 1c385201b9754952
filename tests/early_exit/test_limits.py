"""Deadlines and pauses change when and where an answer is computed, not what it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import Stepper, answer, resume

ROWS = np.random.default_rng(0)
WEIGHTS = [ROWS.standard_normal((6, 6)) for _ in range(3)]
INPUTS = ROWS.standard_normal((50, 6))
POLICY = ExitPolicy(thresholds=(0.8, 0.6, 0.0), enabled=(True,) * 3, answer="geometric")


def segment(weight: np.ndarray, kind: str, note: Callable[[int], object] = lambda rows: None) -> Any:
    """State is two arrays, carry the previous logits."""
    matrix: Any = torch.from_numpy(weight) if kind == "torch" else weight

    def run(state: Any, carry: Any) -> Any:
        x = state[0] + state[1][:, 0] if isinstance(state, tuple) else state
        note(len(x))
        built = (x @ matrix) / 3
        logits = 4 * built[:, :4] + (carry[0] if carry else 0)
        return (built, built[:, None]), (logits,), logits

    return run


def batch(kind: str) -> Any:
    return torch.from_numpy(INPUTS) if kind == "torch" else INPUTS


def test_after_the_deadline_the_best_answer_so_far_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr("time.perf_counter", lambda: 7.0 + 0.2 * len(ran))  # every segment takes 200 ms
    parts = [segment(weight, "numpy", ran.append) for weight in WEIGHTS]
    whole = answer([segment(weight, "numpy") for weight in WEIGHTS], POLICY, INPUTS)
    result = answer(parts, POLICY, INPUTS, deadline_ms=250)
    assert len(ran) == 2, "the third segment was not begun"
    assert result.exit.tolist() == whole.exit.clip(max=1).tolist()
    early = whole.exit <= 1
    np.testing.assert_allclose(result.logits[early], whole.logits[early])
    late = answer(parts[:2], ExitPolicy(thresholds=(0.8, 0.0), enabled=(True, True), answer="geometric"), INPUTS)
    np.testing.assert_allclose(result.logits, late.logits)


def test_the_first_segment_runs_whatever_the_deadline() -> None:
    result = answer([segment(weight, "numpy") for weight in WEIGHTS], POLICY, INPUTS, deadline_ms=1e-9)
    assert result.exit.tolist() == [0] * 50 and np.isfinite(result.logits).all()


def test_a_deadline_far_away_changes_nothing() -> None:
    parts = [segment(weight, "numpy") for weight in WEIGHTS]
    result, wanted = answer(parts, POLICY, INPUTS, deadline_ms=1e9), answer(parts, POLICY, INPUTS)
    assert np.array_equal(result.exit, wanted.exit) and np.array_equal(result.logits, wanted.logits)


@pytest.mark.parametrize("deadline", [0, -1, float("nan")])
def test_a_deadline_that_makes_no_sense(deadline: float) -> None:
    with pytest.raises(ValueError, match="deadline_ms must be positive, got"):
        answer([segment(weight, "numpy") for weight in WEIGHTS], POLICY, INPUTS, deadline_ms=deadline)


@pytest.mark.parametrize("passed", [1, 2])
def test_a_stepper_goes_on_where_another_stopped(passed: int) -> None:
    parts = [segment(weight, "numpy") for weight in WEIGHTS]
    whole = answer(parts, POLICY, INPUTS)
    first = Stepper(POLICY, INPUTS)
    for part in parts[:passed]:
        first.advance(part)
    second = resume(POLICY, first.passed, first.state, first.carry, first.policy_carry)
    for part in parts[passed:]:
        second.advance(part)
    assert second.done and second.answer is not None
    staying = whole.exit >= passed
    assert second.answer.exit.tolist() == whole.exit[staying].tolist()
    np.testing.assert_allclose(second.answer.logits, whole.logits[staying])
