"""Label smoothing and mixup: both turn class indices into soft labels (B, C), which every objective accepts."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from offramp.device_copies import to_device
from offramp.outputs import Batch


def smooth(batch: Batch, classes: int, share: float) -> Batch:
    """Spread `share` of every label evenly over all classes (Szegedy et al. 2016, eq. 7)."""
    soft = _soft(batch, classes)
    return batch._replace(labels=soft * (1 - share) + share / classes)


def mixup(batch: Batch, classes: int, alpha: float, key: tuple[int, ...], turns: int = 1) -> Batch:
    """Blend every sample with another of the batch: weight ~ Beta(alpha, alpha), one for the batch.

    On several processes, both samples are of the same process's slice of the batch; the weight is the same in all.

    Args:
        key: (seed, epoch, step); the same key draws the same blend.
        turns: number of interleaved parts (samples 0, n, 2n ...); samples of the same part are blended.
    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """
    draw = np.random.default_rng(key)
    weight = float(draw.beta(alpha, alpha))
    drawn = np.arange(len(batch.ids))
    for turn in range(turns):
        drawn[turn::turns] = draw.permutation(drawn[turn::turns])
    other = to_device(torch.from_numpy(drawn), batch.inputs.device)
    soft = _soft(batch, classes)
    return batch._replace(
        inputs=batch.inputs.mul(weight).add_(batch.inputs[other], alpha=1 - weight),
        labels=soft.mul(weight).add_(soft[other], alpha=1 - weight),
    )


def _soft(batch: Batch, classes: int) -> Float[Tensor, "B C"]:
    return batch.labels if batch.labels.dim() == 2 else one_hot(batch.labels, classes).float()
