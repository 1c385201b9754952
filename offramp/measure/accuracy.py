"""How often each exit is right, and how well its confidence says so; everything from a trace."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp.outputs import Trace


def top_k(logits: Float[Tensor, "E N C"], labels: Int[Tensor, "N"], k: int = 1) -> list[float]:
    """Share of samples, in [0, 1], whose label is among each exit's k largest logits."""
    k = min(k, logits.shape[-1])
    hits = (logits.topk(k, dim=-1).indices == labels[None, :, None]).any(-1)
    return [float(share) for share in hits.double().mean(1)]


def ensemble(logits: Float[Tensor, "E N C"]) -> Float[Tensor, "N C"]:
    """The unweighted sum of all exits' logits (BEED's evaluation); the argmax is the ensemble's answer."""
    return logits.sum(0)


def calibration_error(logits: Float[Tensor, "E N C"], labels: Int[Tensor, "N"], bins: int = 15) -> list[float]:
    """Expected calibration error of every exit, in [0, 1]: |confidence - accuracy|, averaged over equal-width bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3.
    """
    confidence, answer = logits.double().softmax(-1).max(-1)
    right = (answer == labels).double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    errors = []
    for exit in range(len(logits)):
        gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which[exit], confidence[exit] - right[exit])
        errors.append(float(gap.abs().sum() / len(labels)))
    return errors


def summary(trace: Trace) -> dict[str, object]:
    """Accuracy per exit and of the ensemble, top-5 and calibration error: plain numbers, shares in [0, 1].

    Raises:
        ValueError: if the trace has no labels.
    """
    if trace.labels is None:
        raise ValueError(f"the trace of {trace.split!r} has no labels, so there is no accuracy")
    logits, labels = trace.logits, trace.labels
    return {
        "split": trace.split,
        "samples": len(labels),
        "accuracy": top_k(logits, labels),
        "top5": top_k(logits, labels, 5),
        "ensemble": top_k(ensemble(logits)[None], labels)[0],
        "calibration_error": calibration_error(logits, labels),
    }
