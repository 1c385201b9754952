"""The unweighted losses of dense distillation as one vector: each exit's cross-entropy, then every pair of exits."""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.kl_table import soft_cross_entropy_table

Teachers = Literal["all", "final", "none"]


def pairs(exits: int, teachers: Teachers = "all") -> list[tuple[int, int]]:
    """(teacher, student) of every term in order, counted from 0: (1, 0), (2, 0), (2, 1), (3, 0) ...

    Args:
        exits: E.
        teachers: every exit teaches all shallower ones, only the final exit does, or none.
    """
    if teachers == "none":
        return []
    first = 1 if teachers == "all" else exits - 1
    return [(teacher, student) for teacher in range(first, exits) for student in range(teacher)]


def loss_vector(
    logits: Float[Tensor, "E B C"],
    labels: Int[Tensor, "B"] | Float[Tensor, "B _"],
    *,
    temperature: float,
    teachers: Teachers = "all",
    detach_teachers: bool = True,
) -> Float[Tensor, "M"]:
    """E cross-entropies, then T^2 H_T(teacher -> student) of every pair of `pairs`: means over the batch, in nats.

    With all teachers M = E + E (E - 1) / 2 (Wang & Li, AAAI 2021, section 3). It carries forward-mode tangents.
    """
    ce = cross_entropy(logits, labels)
    if not pairs(len(logits), teachers):
        return ce
    table = soft_cross_entropy_table(logits, temperature=temperature, detach_teachers=detach_teachers)
    teacher, student = _indices(len(logits), teachers, logits.device)
    return torch.cat([ce, temperature**2 * table[student, teacher]])


@lru_cache(maxsize=64)
def _indices(exits: int, teachers: Teachers, device: torch.device) -> Int[Tensor, "2 M"]:
    """The pairs as rows of teachers and students: made once, because a copy to a GPU would make every step wait."""
    with torch.inference_mode(False):  # a tensor that is kept must serve training, too
        return torch.tensor(pairs(exits, teachers), device=device).T
