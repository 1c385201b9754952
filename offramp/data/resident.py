"""Images that are all at hand: on a CPU where the source has them, else the split's copied to the device once."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from offramp.data.splits import ArraySource, Split


class Resident:
    """The pixels of a split on the device, found by id."""

    cropped = False

    def __init__(self, split: Split, device: torch.device) -> None:
        source = split.source
        self.rows: Tensor | None = None
        if device.type == "cpu" and isinstance(source, ArraySource):
            self.pixels = torch.from_numpy(source.pixels)  # no copy: mapped from the cache, shared between processes
            return
        self.pixels = torch.from_numpy(source.batch(split.indices)).to(device)
        self.rows = torch.full((len(source),), -1, dtype=torch.int64)
        self.rows[torch.from_numpy(split.indices)] = torch.arange(len(split))
        self.rows = self.rows.to(device)

    def batches(
        self, ids: Int[Tensor, "N"], bounds: Sequence[tuple[int, int]], seed: int, epoch: int
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """The pixels of ids[a:b] for each of the bounds (a, b)."""
        rows = ids if self.rows is None else self.rows[ids]
        for start, stop in bounds:
            yield self.pixels.index_select(0, rows[start:stop])
