"""Feature distances: reductions, mask, shapes that must not be broadcast, precision."""

import pytest
import torch

from offramp.losses.hint import distance, total

STUDENT = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
TEACHER = torch.tensor([[0.0, -1.0], [-1.0, 1.0]])  # squares 1, 1, 1, 4; neither is positive in the 2nd and 3rd


@pytest.mark.parametrize(
    ("reduction", "masked", "expected"),
    [("sum", False, 7.0), ("sum", True, 5.0), ("mean", False, 1.75), ("mean", True, 1.25), ("norm", False, 7.0**0.5)],
)
def test_reductions(reduction: str, masked: bool, expected: float) -> None:
    assert distance(STUDENT, TEACHER, reduction=reduction, masked=masked).item() == pytest.approx(expected)


def test_the_mask_changes_nothing_behind_a_relu() -> None:
    student, teacher = STUDENT.relu(), TEACHER.relu()
    assert torch.equal(
        distance(student, teacher, reduction="sum", masked=True), distance(student, teacher, reduction="sum")
    )


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (2, 2, 1, 1)])
def test_other_shapes_are_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"cannot compare features of shape \(2, 2\) with .* equal shapes"):
        distance(STUDENT, torch.zeros(shape), reduction="sum")


def test_the_norm_of_nothing_has_no_gradient() -> None:
    student = TEACHER.clone().requires_grad_()
    distance(student, TEACHER, reduction="norm").backward()
    assert torch.equal(student.grad, torch.zeros(2, 2))


def test_bf16_features_are_compared_in_float32() -> None:
    many = torch.ones(64, 64, dtype=torch.bfloat16)
    assert distance(many, torch.zeros_like(many), reduction="sum").item() == 4096.0  # bf16 stops counting at 256


def test_maps_and_tokens() -> None:
    assert distance(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), reduction="mean").item() == 1.0
    assert distance(torch.ones(2, 5, 3), torch.zeros(2, 5, 3), reduction="sum").item() == 30.0


def test_total_of_nothing_is_zero() -> None:
    assert total([], like=STUDENT.bfloat16()).item() == 0.0
    assert total([torch.tensor(1.0), torch.tensor(2.5)], like=STUDENT).item() == 3.5
