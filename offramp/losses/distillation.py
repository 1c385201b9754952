"""What a teacher says: soft cross-entropy, KL divergence and squared distance of logits, for many students at once.

None of them contains the factor T^2; methods write it out. While the teacher is detached, soft cross-entropy and KL
have the same gradient and differ by the teacher's entropy.
"""

from jaxtyping import Float
from torch import Tensor

from offramp.losses.softmax import exact, log_probabilities

TemperatureLike = float | Float[Tensor, ""]


def soft_cross_entropy(
    student: Float[Tensor, "E B C"],
    teacher: Float[Tensor, "#E B C"],
    *,
    temperature: TemperatureLike,
    detach: bool = True,
) -> Float[Tensor, "E"]:
    """H_T(teacher -> student) = mean over the batch of sum_c -p_teacher log p_student, in nats (Hinton 2015, eq. 2).

    Args:
        student: logits of E students.
        teacher: logits of one teacher for all (1, B, C), or one for each.
        temperature: T, divides both logits.
        detach: no gradient into the teacher.
    """
    p = log_probabilities(teacher.detach() if detach else teacher, temperature).exp()
    return -(p * log_probabilities(student, temperature)).sum(-1).mean(-1)


def kl(
    student: Float[Tensor, "E B C"],
    teacher: Float[Tensor, "#E B C"],
    *,
    temperature: TemperatureLike,
    detach: bool = True,
) -> Float[Tensor, "E"]:
    """KL_T(teacher || student) = mean over the batch of sum_c p_teacher (log p_teacher - log p_student), in nats.

    Arguments as in `soft_cross_entropy`.
    """
    log_p = log_probabilities(teacher.detach() if detach else teacher, temperature)
    return (log_p.exp() * (log_p - log_probabilities(student, temperature))).sum(-1).mean(-1)


def mse(
    student: Float[Tensor, "E B C"], teacher: Float[Tensor, "#E B C"], *, detach: bool = True
) -> Float[Tensor, "E"]:
    """Mean over batch and classes of the squared difference of raw logits, no temperature (EED, Lee & Lee 2021)."""
    target = exact(teacher.detach() if detach else teacher)
    return (exact(student) - target).square().mean((-2, -1))
