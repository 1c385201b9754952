"""Images that do not fit memory: decoded anew for every batch by a few threads that work a little ahead."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from offramp.data.augment import box_draws, window_draws
from offramp.data.splits import CroppingSource, Split
from offramp.device_copies import to_device

AHEAD = 2  # batches decoded or being decoded while one is used: what bounds memory


class Streaming:
    """The pixels of a split, batch by batch; at most `AHEAD` + 1 batches are in memory.

    `crop` is the augmentation whose random crops are cut from the originals, if the source can do that.
    """

    def __init__(
        self, split: Split, device: torch.device, *, crop: str | None = None, workers: int | None = None
    ) -> None:
        self.source: Any = split.source
        self.device = device
        self.crop = crop if isinstance(split.source, CroppingSource) else None
        self.cropped = self.crop is not None
        self.workers = workers or min(8, os.cpu_count() or 1)

    def batches(
        self, ids: Int[Tensor, "N"], bounds: Sequence[tuple[int, int]], seed: int, epoch: int
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """The pixels of ids[a:b] for each of the bounds (a, b), on the device."""
        rows = ids.cpu()
        waiting: deque[list[Future[Any]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="offramp-decode")
        try:
            for start, stop in bounds:
                parts = torch.tensor_split(rows[start:stop], self.workers)
                waiting.append([pool.submit(self._decode, part, seed, epoch) for part in parts])
                if len(waiting) > AHEAD:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        finally:  # also where the loop is left early or an image fails
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, ids: Tensor, seed: int, epoch: int) -> Any:
        rows = ids.numpy()
        if self.crop == "resize-crop-flip":
            return self.source.windows(rows, window_draws(seed, epoch, ids))
        if self.crop:
            return self.source.crops(rows, box_draws(seed, epoch, ids))
        return self.source.batch(rows)

    def _collect(self, parts: list["Future[Any]"]) -> Tensor:
        pixels = torch.from_numpy(np.concatenate([part.result() for part in parts]))
        return to_device(pixels, self.device)
