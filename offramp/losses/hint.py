"""How far a student's feature is from its teacher's: squared distances, masked or plain, summed or averaged."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offramp.losses.distributed import for_sums, global_sum
from offramp.losses.softmax import exact

Reduction = Literal["sum", "mean", "norm"]


def distance(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."], *, reduction: Reduction, masked: bool = False
) -> Float[Tensor, ""]:
    """Distance of two features or maps of equal shape, in float32; the teacher gets a gradient unless detached before.

    Args:
        student: (B, D), (B, D, H, W) or (B, T, D).
        teacher: the same shape.
        reduction: "sum" of squares over batch and dimensions (MUSE, MSD, BYOT's code), their "mean" (EED, BEED), or
            the un-squared "norm" of the whole batch (BYOT's journal code).
        masked: count only where one of the two is positive (Heo 2019); changes nothing behind a ReLU.

    Raises:
        ValueError: if the shapes differ: they are never pooled, cropped or broadcast silently.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"cannot compare features of shape {tuple(student.shape)} with features of shape {tuple(teacher.shape)}: "
            "use exits that end in equal shapes, or set the weight of the feature term to 0"
        )
    squares = (exact(student) - exact(teacher)).square()
    if masked:
        squares = squares * _either_positive(student, teacher)
    if reduction == "mean":
        return squares.mean()
    if reduction == "sum":
        return squares.sum() * for_sums()
    # A norm has no gradient at 0; the smallest number instead makes it 0 there.
    return global_sum(squares.sum()).clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _either_positive(student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Bool[Tensor, "B ..."]:
    return (student > 0) | (teacher > 0)


def total(distances: Sequence[Float[Tensor, ""]], like: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Sum of the distances; a zero on the device of `like` if no exit can be compared."""
    return torch.stack(list(distances)).sum() if distances else exact(like.new_zeros(()))
