"""Types that all packages share: batches, the outputs of all exits, states between stages, traces.

Shape letters, the same in every file: E exits (shallow to deep, the final exit last), B batch, C classes,
D feature width, T tokens, N samples of a data set, H W space.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float, Int, Shaped
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
"""What one stage passes to the next. EVERY tensor has the batch first, so that compaction is one index."""

Carry = tuple[Tensor, ...]
"""What exits pass along their chain (previous logits, a running sum); empty for independent exits."""

Segment = Callable[[State, Carry], tuple[State, Carry, Tensor]]
"""One or more stages and the exit after them: eager, compiled, exported or a foreign runtime's session alike."""


class Batch(NamedTuple):
    """A batch of samples: inputs (B, channels, H, W), labels and ids.

    `labels` are class indices (B,) or soft labels (B, C); `ids` (B,) are the indices of the samples within their data
    set.
    """

    inputs: Shaped[Tensor, "B ..."]
    labels: Int[Tensor, "B"] | Float[Tensor, "B C"]
    ids: Int[Tensor, "B"]


class ExitOutputs(NamedTuple):
    """Outputs of a network with E exits, shallow to deep, the final exit last.

    `logits` (E, B, C); `features`, for each exit the pooled input of its classifier (B, D); `maps`, the same before
    pooling, (B, D, H, W) or (B, T, D).
    """

    logits: Float[Tensor, "E B C"]
    features: tuple[Float[Tensor, "B _"], ...]
    maps: tuple[Float[Tensor, "B ..."], ...]


class Trace(NamedTuple):
    """The logits (E, N, C) of all exits for all samples of a split, with their labels (N,) and ids (N,), as tensors."""

    logits: Float[Tensor, "E N C"]
    labels: Int[Tensor, "N"] | None
    ids: Int[Tensor, "N"]
    split: str
