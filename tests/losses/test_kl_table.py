"""The table of all divergences: against separate ones, forward tangents, precision, extreme logits."""

import pytest
import torch
from torch import Tensor

from offramp.losses.distillation import kl, soft_cross_entropy
from offramp.losses.kl_table import kl_table, soft_cross_entropy_table

# torch's own jvp scripts its rules on first use, with a function that torch itself deprecates.
TORCH_JVP = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")


def logits(exits: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(exits, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) * 3


def pairwise(z: Tensor, detach: bool, reverse: bool = False) -> Tensor:
    """The same table from one divergence per pair."""
    rows = []
    for s in range(len(z)):
        for t in range(len(z)):
            student, teacher = z[s : s + 1], z[t : t + 1].detach() if detach else z[t : t + 1]
            pair = (teacher, student) if reverse else (student, teacher)
            rows.append(kl(*pair, temperature=3.0, detach=False).squeeze(0))
    return torch.stack(rows).view(len(z), len(z))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("exits", [1, 2, 7])
def test_equals_separate_divergences_and_their_gradients(exits: int, detach: bool, reverse: bool) -> None:
    weights = torch.randn(exits, exits, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got, expected = logits(exits).requires_grad_(), logits(exits).requires_grad_()
    table = kl_table(got, temperature=3.0, detach_teachers=detach, reverse=reverse)
    separate = pairwise(expected, detach, reverse)
    torch.testing.assert_close(table, separate, atol=1e-13, rtol=1e-11)
    (table * weights).sum().backward()
    (separate * weights).sum().backward()
    torch.testing.assert_close(got.grad, expected.grad, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("detach", [False, True])
def test_soft_cross_entropy_table_equals_separate_ones(detach: bool) -> None:
    z = logits()
    table = soft_cross_entropy_table(z, temperature=3.0, detach_teachers=detach)
    for teacher in range(4):
        column = soft_cross_entropy(z, z[teacher : teacher + 1], temperature=3.0)
        torch.testing.assert_close(table[:, teacher], column)


@pytest.mark.parametrize("reverse", [False, True])
def test_nobody_diverges_from_themselves(reverse: bool) -> None:
    assert torch.equal(kl_table(logits(), temperature=3.0).diagonal(), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(
        kl_table(logits(), temperature=3.0, reverse=reverse).diagonal(), torch.zeros(4, dtype=torch.float64)
    )


@TORCH_JVP
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("detach", [False, True])
def test_forward_tangents_equal_the_gradient_s_product(detach: bool, reverse: bool) -> None:
    direction = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def table(z: Tensor) -> Tensor:
        return kl_table(z, temperature=3.0, detach_teachers=detach, reverse=reverse)

    _, tangent = torch.func.jvp(table, (logits(),), (direction,))
    z = logits().requires_grad_()
    rows = [torch.autograd.grad(cell, z, retain_graph=True)[0] for cell in table(z).flatten()]
    expected = torch.stack([(row * direction).sum() for row in rows]).view(4, 4)
    torch.testing.assert_close(tangent, expected, atol=1e-13, rtol=1e-10)


@TORCH_JVP
def test_forward_tangents_stop_at_a_detached_teacher() -> None:
    only_last = torch.zeros(4, 6, 5, dtype=torch.float64)
    only_last[-1] = 1.0 + torch.arange(5, dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda z: kl_table(z, temperature=3.0), (logits(),), (only_last,))
    assert not tangent[:-1].any() and tangent[-1, :-1].all()


def test_bf16_and_autocast_are_computed_in_float32() -> None:
    z = logits(dtype=torch.bfloat16)
    expected = kl_table(z.float(), temperature=3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = kl_table(z, temperature=3.0)
        turned = kl_table(z, temperature=3.0, reverse=True)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(turned, kl_table(z.float(), temperature=3.0, reverse=True), rtol=0, atol=0)


def test_extreme_logits_stay_finite() -> None:
    z = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]], requires_grad=True)
    table = kl_table(z, temperature=1.0)
    table.sum().backward()
    assert torch.isfinite(table).all() and torch.isfinite(z.grad).all()
    torch.testing.assert_close(table, torch.tensor([[0.0, 2e4], [2e4, 0.0]]))
