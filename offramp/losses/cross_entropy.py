"""What the labels say: cross-entropy of every exit, with class indices or soft labels."""

from jaxtyping import Float, Int
from torch import Tensor

from offramp.losses.softmax import log_probabilities

Labels = Int[Tensor, "N"] | Float[Tensor, "N K"]  # letters of their own: N = B and K = C are checked below, in words


def cross_entropy(logits: Float[Tensor, "E B C"], labels: Labels) -> Float[Tensor, "E"]:
    """Cross-entropy of each exit at temperature 1, in nats: the mean over the batch of -log p[label].

    Args:
        logits: of all exits.
        labels: class indices (B,), or soft labels (B, C) whose rows are distributions.

    Raises:
        ValueError: if the labels do not fit the logits.
    """
    return sample_cross_entropy(logits, labels).mean(-1)


def sample_cross_entropy(logits: Float[Tensor, "E B C"], labels: Labels) -> Float[Tensor, "E B"]:
    """Cross-entropy of each exit for each sample, in nats; arguments and errors as in `cross_entropy`."""
    if labels.shape[0] != logits.shape[1]:
        raise ValueError(f"{labels.shape[0]} labels do not fit logits of {logits.shape[1]} samples")
    log_p = log_probabilities(logits)
    if labels.dim() == 2:
        if labels.shape != logits.shape[1:]:
            raise ValueError(
                f"soft labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: "
                f"one weight for each of the {logits.shape[-1]} classes is needed"
            )
        return -(labels.to(log_p.dtype) * log_p).sum(-1)
    return -_pick(log_p, labels)


def _pick(log_p: Float[Tensor, "E B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "E B"]:
    index = labels.long().expand(log_p.shape[:-1]).unsqueeze(-1)
    try:
        return log_p.gather(-1, index).squeeze(-1)
    except (IndexError, RuntimeError) as error:  # looking first would make a GPU wait at every step
        raise ValueError(
            f"labels must be in 0...{log_p.shape[-1] - 1}, the network's classes; "
            f"here they are in {int(labels.min())}...{int(labels.max())}"
        ) from error
