"""Images that are all in memory: on a CPU in the source, on a GPU the split's, copied there once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from offramp.data.splits import ArraySource, Split
from offramp.device_copies import to_device

SHARE = 0.5
"""Largest share of a GPU's free memory that the images of a split may take: the rest is for training."""
CHUNK = 64 << 20
"""Bytes of images that are copied to a GPU at a time, so that the host never holds the whole split."""


def does_not_fit(split: Split, device: torch.device) -> str:
    """A note for the user if a GPU has too little free memory for the images of a split; nothing if it has enough."""
    if device.type != "cuda":
        return ""
    needed, free = len(split) * int(np.prod(split.source.shape)), torch.cuda.mem_get_info(device)[0]
    if needed <= SHARE * free:
        return ""
    return (
        f"the images of {split.name} ({needed / 2**30:.1f} GiB) do not fit beside the network in the "
        f"{free / 2**30:.1f} GiB that are free on the GPU: every batch is copied when it is needed"
    )


class Resident:
    """The pixels of a split on the device, found by id."""

    cropped = False

    def __init__(self, split: Split, device: torch.device) -> None:
        source = split.source
        self.size = len(source)
        self.rows: Tensor | None = None
        if device.type == "cpu" and isinstance(source, ArraySource):
            self.pixels = torch.from_numpy(source.pixels)  # no copy: mapped from the cache, shared between processes
            return
        self.pixels = _uploaded(split, device)
        rows = torch.full((len(source),), -1, dtype=torch.int64)
        rows[torch.from_numpy(split.indices)] = torch.arange(len(split))
        self.rows = rows.to(device)

    def batches(
        self, ids: Int[Tensor, "N"], bounds: Sequence[tuple[int, int]], seed: int, epoch: int
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """The pixels of ids[a:b] for each of the bounds (a, b); ids beyond the source's are those of `balanced`."""
        ids = ids % self.size
        rows = ids if self.rows is None else self.rows[ids]
        for start, stop in bounds:
            yield self.pixels.index_select(0, rows[start:stop])


def _uploaded(split: Split, device: torch.device) -> UInt8[Tensor, "N C H W"]:
    """The images of a split on the device, copied in chunks."""
    source, shape = split.source, split.source.shape
    pixels = torch.empty((len(split), *shape), dtype=torch.uint8, device=device)
    size = max(1, CHUNK // int(np.prod(shape)))
    for start in range(0, len(split), size):
        chunk = torch.from_numpy(source.batch(split.indices[start : start + size]))
        pixels[start : start + size] = to_device(chunk, device)
    return pixels
