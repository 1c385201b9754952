"""Imitation of logits against torch's own functions; who gets a gradient."""

import pytest
import torch
import torch.nn.functional as F

from offramp.losses.distillation import kl, mse, soft_cross_entropy

STUDENTS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEACHER = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_kl_is_torch_s_kl_div_per_sample() -> None:
    expected = [
        F.kl_div(F.log_softmax(z / 3, -1), F.softmax(TEACHER[0] / 3, -1), reduction="batchmean") for z in STUDENTS
    ]
    torch.testing.assert_close(kl(STUDENTS, TEACHER, temperature=3.0), torch.stack(expected))


def test_soft_cross_entropy_is_torch_s_with_probabilities() -> None:
    expected = [F.cross_entropy(z / 3, F.softmax(TEACHER[0] / 3, -1)) for z in STUDENTS]
    torch.testing.assert_close(soft_cross_entropy(STUDENTS, TEACHER, temperature=3.0), torch.stack(expected))


def test_mse_is_torch_s() -> None:
    torch.testing.assert_close(mse(STUDENTS, TEACHER), torch.stack([F.mse_loss(z, TEACHER[0]) for z in STUDENTS]))


@pytest.mark.parametrize("teachers", [1, 3])
def test_one_teacher_or_one_for_each(teachers: int) -> None:
    torch.testing.assert_close(
        kl(STUDENTS, TEACHER.repeat(teachers, 1, 1), temperature=2.0), kl(STUDENTS, TEACHER, temperature=2.0)
    )


def test_kl_and_soft_cross_entropy_have_the_same_gradient_while_the_teacher_is_detached() -> None:
    gradients = []
    for form in (kl, soft_cross_entropy):
        students = STUDENTS.clone().requires_grad_()
        form(students, TEACHER, temperature=3.0).sum().backward()
        gradients.append(students.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("detach", [True, False])
def test_the_teacher_gets_a_gradient_only_if_not_detached(detach: bool) -> None:
    for form in (kl, soft_cross_entropy):
        teacher, students = TEACHER.clone().requires_grad_(), STUDENTS.clone().requires_grad_()
        form(students, teacher, temperature=3.0, detach=detach).sum().backward()
        assert (teacher.grad is None) == detach
    teacher, students = TEACHER.clone().requires_grad_(), STUDENTS.clone().requires_grad_()
    mse(students, teacher, detach=detach).sum().backward()
    assert (teacher.grad is None) == detach


def test_a_temperature_may_be_a_tensor() -> None:
    torch.testing.assert_close(
        kl(STUDENTS, TEACHER, temperature=torch.tensor(3.0)), kl(STUDENTS, TEACHER, temperature=3.0)
    )
