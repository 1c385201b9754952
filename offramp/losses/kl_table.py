"""Every exit as the student of every other: all E x E divergences from one softmax and one matrix product.

Tables are indexed [student, teacher]. They are computed in float32 (float64 stays float64), outside autocast, from
ordinary operations: they carry forward-mode tangents (`torch.func.jvp`), and `detach` stops those too.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from offramp.losses.softmax import log_probabilities

TemperatureLike = float | Float[Tensor, ""]


def kl_table(
    logits: Float[Tensor, "E B C"], *, temperature: TemperatureLike, detach_teachers: bool = True, reverse: bool = False
) -> Float[Tensor, "E E"]:
    """KL_T(teacher || student) of every pair, mean over the batch, in nats; no factor T^2; zeros on the diagonal.

    Args:
        logits: of all exits.
        temperature: T, divides all logits.
        detach_teachers: no gradient into the teacher of a cell; a method then chooses cells.
        reverse: KL_T(student || teacher) instead, still at [student, teacher].
    """
    if reverse:
        return _reverse(logits, temperature, detach_teachers)
    cross = soft_cross_entropy_table(logits, temperature=temperature, detach_teachers=detach_teachers)
    # A distribution's cross-entropy with itself is its entropy: the diagonal holds the teachers'.
    return cross - (cross.detach() if detach_teachers else cross).diagonal()


def soft_cross_entropy_table(
    logits: Float[Tensor, "E B C"], *, temperature: TemperatureLike, detach_teachers: bool = True
) -> Float[Tensor, "E E"]:
    """H_T(teacher -> student) of every pair, mean over the batch, in nats; a teacher's own entropy on the diagonal.

    Arguments as in `kl_table`, which is this table less its diagonal.
    """
    with torch.autocast(logits.device.type, enabled=False):
        students = log_probabilities(logits, temperature).flatten(1)
        teachers = (students.detach() if detach_teachers else students).exp()
        # One product of (E, B C) by (B C, E) holds every pair: no (E, E, B, C) tensor ever exists.
        return _product(students, teachers) / -logits.shape[1]


def _reverse(
    logits: Float[Tensor, "E B C"], temperature: TemperatureLike, detach_teachers: bool
) -> Float[Tensor, "E E"]:
    with torch.autocast(logits.device.type, enabled=False):
        students = log_probabilities(logits, temperature).flatten(1)
        teachers = students.detach() if detach_teachers else students
        p = students.exp()
        entropies = (p * students).sum(1, keepdim=True)
        return (entropies - _product(p, teachers)) / logits.shape[1]


def _product(students: Float[Tensor, "E J"], teachers: Float[Tensor, "E J"]) -> Float[Tensor, "E E"]:
    """students @ teachers.T, exactly: TF32 would round differences between close exits away."""
    if students.is_cuda and _rounds_to_tf32():
        return (students.double() @ teachers.double().T).to(students.dtype)  # its backward pass is as exact
    return students @ teachers.T


def _rounds_to_tf32() -> bool:
    """Whether products in float32 are computed in TF32."""
    products = torch.backends.cuda.matmul
    if torch.compiler.is_compiling():  # which can read the older name alone
        return bool(products.allow_tf32)
    return bool(products.fp32_precision == "tf32")
