"""Images that do not fit memory: read again for every batch by a few threads, a few batches ahead."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from offramp.cores import cores
from offramp.data._batch_memory import BatchMemory
from offramp.data.augment import box_draws, flips, window_draws
from offramp.data.splits import CroppingSource, Split
from offramp.device_copies import to_device

AHEAD = 2  # batches decoded or being decoded while one is used: what bounds memory
MOST_WORKERS = 32
TASK = 32
"""Images that a worker decodes at a time: what it allocates is small, so that memory stays flat."""


class Streaming:
    """The pixels of a split, batch by batch; at most `AHEAD` + 1 batches are in memory.

    `crop` is the augmentation whose random crops are cut from the originals, if the source can do that; they are
    mirrored here, too, while the processor's caches hold them.
    """

    def __init__(
        self, split: Split, device: torch.device, *, crop: str | None = None, workers: int | None = None
    ) -> None:
        self.source: Any = split.source
        self.device = device
        self.crop = crop if isinstance(split.source, CroppingSource) else None
        self.cropped = self.crop is not None
        self.workers = workers or min(MOST_WORKERS, cores())
        self.memory = BatchMemory()

    def batches(
        self, ids: Int[Tensor, "N"], bounds: Sequence[tuple[int, int]], seed: int, epoch: int
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """The pixels of ids[a:b] for each of the bounds (a, b), on the device."""
        rows = ids.cpu()
        one = self.source.batch(rows[:1].numpy() % len(self.source))  # in the memory layout of all
        waiting: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="offramp-decode")
        try:
            for start, stop in bounds:
                batch_rows = rows[start:stop]
                draws, flip = self._draws(batch_rows, seed, epoch)
                pixels = self.memory.like(one, len(batch_rows))
                size = max(1, min(TASK, -(-len(batch_rows) // self.workers)))
                slices = [slice(first, first + size) for first in range(0, len(batch_rows), size)]
                tasks = [
                    pool.submit(self._decode, batch_rows[each], draws[each], flip[each], pixels[each])
                    for each in slices
                ]
                waiting.append((pixels, tasks))
                if len(waiting) > AHEAD:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:  # also where the loop is left early or an image fails
            pool.shutdown(wait=True, cancel_futures=True)

    def _draws(self, ids: Int[Tensor, "B"], seed: int, epoch: int) -> tuple[Tensor, Bool[Tensor, "B"]]:
        """What the crops of a batch depend on and which of them are mirrored; the rows are those of `ids`."""
        if self.crop is None:
            return ids, torch.zeros(len(ids), dtype=torch.bool)
        draws = window_draws if self.crop == "resize-crop-flip" else box_draws
        return draws(seed, epoch, ids), flips(seed, epoch, ids)

    def _decode(self, ids: Int[Tensor, "B"], draws: Tensor, flip: Bool[Tensor, "B"], out: np.ndarray) -> None:
        rows = ids.numpy() % len(self.source)
        with one_thread():
            if self.crop is None:
                out[:] = self.source.batch(rows)
            elif self.crop == "resize-crop-flip":
                self.source.windows(rows, draws, out)
            else:
                self.source.crops(rows, draws, out)
            images = torch.from_numpy(out)
            for place in flip.nonzero().flatten().tolist():
                images[place].copy_(images[place].flip(2))

    def _collect(self, pixels: np.ndarray, tasks: list["Future[None]"]) -> Tensor:
        for task in tasks:
            task.result()
        return to_device(torch.from_numpy(pixels), self.device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in this thread alone while all cores decode: waiting for a second thread costs more than it helps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
