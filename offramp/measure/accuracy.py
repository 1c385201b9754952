"""Accuracy and calibration of every exit, from a trace."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offramp.outputs import Trace


def in_top_k(logits: Float[Tensor, "E N C"], labels: Int[Tensor, "N"], k: int = 1) -> Bool[Tensor, "E N"]:
    """Whether each sample's label is among each exit's k largest logits."""
    k = min(k, logits.shape[-1])
    # of equal logits the first counts, as in argmax; topk takes any of them
    largest = logits.argmax(-1, keepdim=True) if k == 1 else logits.topk(k, dim=-1).indices
    return (largest == labels[None, :, None]).any(-1)


def top_k(logits: Float[Tensor, "E N C"], labels: Int[Tensor, "N"], k: int = 1) -> list[float]:
    """Share of samples, in [0, 1], whose label is among each exit's k largest logits."""
    return [float(share) for share in in_top_k(logits, labels, k).double().mean(1)]


def ensemble(logits: Float[Tensor, "E N C"]) -> Float[Tensor, "N C"]:
    """The unweighted sum of all exits' logits (BEED's evaluation); the argmax is the ensemble's prediction."""
    return logits.sum(0)


class Bins(NamedTuple):
    """One exit's samples in equal-width bins of confidence: count, mean confidence, accuracy.

    Means are in [0, 1], and 0 if a bin is empty.
    """

    samples: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: |confidence - accuracy|, averaged over the samples' bins."""
        gaps = (n * abs(sure - right) for n, sure, right in zip(*self, strict=True))
        return sum(gaps) / sum(self.samples)


def reliability(logits: Float[Tensor, "E N C"], labels: Int[Tensor, "N"], bins: int = 15) -> list[Bins]:
    """Confidence and accuracy of every exit, as in a reliability diagram.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    bins_of_exits = []
    for exit in logits:  # one at a time: in float64 they are large
        confidence, answer = exit.double().softmax(-1).max(-1)
        which = (confidence * bins).ceil().long().clamp(1, bins) - 1
        count = torch.bincount(which, minlength=bins)
        sums = (torch.bincount(which, part.double(), minlength=bins) for part in (confidence, answer == labels))
        sure, right = ((total / count.clamp(min=1)).tolist() for total in sums)
        bins_of_exits.append(Bins(tuple(count.tolist()), tuple(sure), tuple(right)))
    return bins_of_exits


def calibration_error(logits: Float[Tensor, "E N C"], labels: Int[Tensor, "N"], bins: int = 15) -> list[float]:
    """Expected calibration error of every exit, in [0, 1]: |confidence - accuracy|, averaged over equal-width bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3.
    """
    return [exit.error for exit in reliability(logits, labels, bins)]


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
