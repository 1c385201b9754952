"""Images that do not fit memory: read again for every batch by a few threads, a few batches ahead."""

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
MOST_WORKERS = 32


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
        self.workers = workers or min(MOST_WORKERS, _cores())

    def batches(
        self, ids: Int[Tensor, "N"], bounds: Sequence[tuple[int, int]], seed: int, epoch: int
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """The pixels of ids[a:b] for each of the bounds (a, b), on the device."""
        rows = ids.cpu()
        waiting: deque[list[Future[Any]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="offramp-decode")
        try:
            for start, stop in bounds:
                batch_rows = rows[start:stop]
                parts = (
                    torch.tensor_split(each, self.workers)
                    for each in (batch_rows, self._draws(batch_rows, seed, epoch))
                )
                waiting.append([pool.submit(self._decode, *part) for part in zip(*parts, strict=True)])
                if len(waiting) > AHEAD:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        finally:  # also where the loop is left early or an image fails
            pool.shutdown(wait=True, cancel_futures=True)

    def _draws(self, ids: Int[Tensor, "B"], seed: int, epoch: int) -> Tensor:
        """What the crops of a batch depend on, drawn for all its images at once; its rows are those of `ids`."""
        if self.crop is None:
            return ids
        return window_draws(seed, epoch, ids) if self.crop == "resize-crop-flip" else box_draws(seed, epoch, ids)

    def _decode(self, ids: Int[Tensor, "B"], draws: Tensor) -> Any:
        rows = ids.numpy() % len(self.source)
        if self.crop is None:
            return self.source.batch(rows)
        return self.source.windows(rows, draws) if self.crop == "resize-crop-flip" else self.source.crops(rows, draws)

    def _collect(self, parts: list["Future[Any]"]) -> Tensor:
        pixels = torch.from_numpy(np.concatenate([part.result() for part in parts]))
        return to_device(pixels, self.device)


def _cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
