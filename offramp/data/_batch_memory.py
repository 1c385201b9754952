"""Memory of large batches, used again when nothing refers to it any more.

It is not taken from the C library's allocator, which splits the place of a freed batch for the next small allocation,
so that the next batch needs another one and a process grows for a while.
"""

import mmap
import weakref

import numpy as np
from jaxtyping import UInt8

KEPT = 4
"""Most unused pieces of memory that are kept."""


class BatchMemory:
    """Pieces of memory of a process; each belongs to the array that was returned for it until that array is gone."""

    def __init__(self) -> None:
        self.unused: list[mmap.mmap] = []

    def take(self, size: int) -> UInt8[np.ndarray, "N"]:
        """Uninitialised bytes."""
        memory = next((each for each in self.unused if len(each) >= size), None)
        if memory is None:
            memory = mmap.mmap(-1, max(1, size))
        else:
            self.unused.remove(memory)
        taken = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(taken, self._give_back, memory).atexit = False
        return taken

    def like(self, images: UInt8[np.ndarray, "_ C H W"], count: int) -> UInt8[np.ndarray, "B C H W"]:
        """Uninitialised images of the same shape and memory layout, the batch first."""
        axes = [0, *sorted(range(1, 4), key=lambda axis: -images.strides[axis])]
        shape = (count, *images.shape[1:])
        taken = self.take(int(np.prod(shape)))
        return taken.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))

    def _give_back(self, memory: mmap.mmap) -> None:
        if len(self.unused) < KEPT:
            self.unused.append(memory)
