"""Cross-entropy of every exit: indices, soft labels, precision, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from offramp.losses.cross_entropy import cross_entropy

LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([1, 0, 4, 1])


def test_each_exit_has_torch_s_own_cross_entropy() -> None:
    expected = torch.stack([F.cross_entropy(z, LABELS) for z in LOGITS])
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), expected)
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS.int()), expected)


def test_soft_labels_of_one_class_are_that_class() -> None:
    hard = F.one_hot(LABELS, 5).double()
    torch.testing.assert_close(cross_entropy(LOGITS, hard), cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    half = LOGITS.to(dtype)
    got = cross_entropy(half, LABELS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, cross_entropy(half.float(), LABELS))


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_outside_the_classes_are_named(label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.\.4, .* here they are in") as caught:
        cross_entropy(LOGITS, torch.tensor([1, 0, label, 1]))
    assert str(label) in str(caught.value)


def test_soft_labels_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"soft labels of shape \(4, 6\) do not fit .* each of the 5 classes"):
        cross_entropy(LOGITS, torch.full((4, 6), 1 / 6))


def test_another_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="3 labels do not fit logits of 4 samples"):
        cross_entropy(LOGITS, LABELS[:3])
