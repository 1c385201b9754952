"""What the training loop iterates: batches of a split, in an order and with augmentation that can be had again."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from offramp.data.augment import augment, draw_keys, normalise, order
from offramp.data.balanced import balanced_order
from offramp.data.resident import Resident, does_not_fit
from offramp.data.splits import DataSet, Split
from offramp.data.streaming import Streaming, one_thread
from offramp.device_copies import to_device
from offramp.outputs import Batch

Store = Resident | Streaming
CUT_FROM_ORIGINALS = ("random-resized-crop", "resize-crop-flip")


class Loader:
    """Batches of a split: inputs (B, C, H, W) float32 normalised, labels (B,) and ids (B,), all on the device.

    The order depends on (seed, epoch) only, augmentation on (seed, epoch, sample id) only: stopping, resuming and
    dividing the work between processes change no tensor.

    Args:
        split: what to iterate.
        dataset: where it belongs; says how to normalise and augment.
        batch_size: samples per step, over all processes together.
        device: where the batches are wanted.
        augment: apply the data set's augmentation (train only).
        seed: of the run.
        shuffle: a new order every epoch; default: as `augment`. Otherwise the order of the split.
        channels_last: memory layout of the inputs.
        rank: this process among `world`; it gets its slice of every batch.
        world: number of processes.
        balanced: if shuffled, every class comes equally often in an epoch, which keeps its length.
        store: the split's images on the device, if another loader has them there; default: they are brought there.

    Raises:
        ValueError: if the batch size is below the number of processes, not one step is left, or a label names no class.

    When shuffled, a last batch that would leave a process with ONE sample is dropped (BatchNorm raises on 1x1 maps),
    or with none (the others would wait for it); in evaluation nothing is ever dropped, and a slice may be empty.
    """

    def __init__(
        self,
        split: Split,
        dataset: DataSet,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        augment: bool,
        seed: int,
        shuffle: bool | None = None,
        channels_last: bool = False,
        rank: int = 0,
        world: int = 1,
        balanced: bool = False,
        store: Store | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1} for world={world}, got {rank}")
        if batch_size < world:
            raise ValueError(f"batch_size={batch_size} does not give each of {world} processes a sample: raise it")
        self.split, self.dataset, self.batch_size = split, dataset, batch_size
        self.augment, self.seed = augment, seed
        self.shuffle = augment if shuffle is None else shuffle
        self.channels_last, self.rank, self.world = channels_last, rank, world
        self.balanced = balanced and self.shuffle
        _check_labels(split, len(dataset.classes), dataset.name)
        self.device = torch.device(device)
        self.steps = _steps(len(split), batch_size, world, drop=self.shuffle)
        if not self.steps:
            raise ValueError(
                f"{dataset.name}: {len(split)} samples in {split.name} do not make one batch for {world} process(es)"
            )
        self.note = "" if split.source.streaming or store else does_not_fit(split, self.device)
        self.store = store or self._store(bool(self.note))
        self.keys = self._keys(0).clone()
        self.ids = torch.from_numpy(split.indices).to(self.device)
        self.labels = torch.from_numpy(split.source.labels).to(self.device)

    def _store(self, too_large: bool) -> Store:
        """Where the images come from: their files, the host batch by batch, or all of them from the device."""
        if self.split.source.streaming:
            kind = self.dataset.augmentation
            return Streaming(
                self.split, self.device, crop=kind if self.augment and kind in CUT_FROM_ORIGINALS else None
            )
        return Streaming(self.split, self.device) if too_large else Resident(self.split, self.device)

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on; after a resume they equal those of the unbroken run."""
        keys = self._keys(epoch)
        return (self._to_inputs(batch, keys) for batch in self._raw(epoch, start))

    def raw(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` before `to_inputs`, which takes those of one epoch at a time.

        Their inputs are pixels (B, C, H, W) in uint8; with `balanced`, ids beyond the source's are repeated images.
        """
        self.keys.copy_(self._keys(epoch))
        yield from self._raw(epoch, start)

    def to_inputs(self, batch: Batch) -> Batch:
        """A batch of the last `raw`, augmented and normalised on the device.

        What changes with the epoch is read from a tensor that stays where it is, so that a CUDA graph can hold this.
        """
        return self._to_inputs(batch, self.keys)

    def _keys(self, epoch: int) -> Tensor:
        """What augmentation draws from in an epoch, on the device."""
        return to_device(draw_keys(self.seed, epoch), self.device)

    def _raw(self, epoch: int, start: int) -> Iterator[Batch]:
        ids, size = self._order(epoch), len(self.split.source)
        bounds = [self._bounds(step) for step in range(start, len(self))]
        pixels = self.store.batches(ids, bounds, self.seed, epoch)
        for (first, last), images in zip(bounds, pixels, strict=True):
            batch_ids = ids[first:last]
            yield Batch(images, self.labels[batch_ids % size if self.balanced else batch_ids], batch_ids)

    def _to_inputs(self, batch: Batch, keys: Tensor) -> Batch:
        ids = batch.ids % len(self.split.source) if self.balanced else batch.ids
        decoding = isinstance(self.store, Streaming) and self.device.type == "cpu"
        with one_thread() if decoding else nullcontext():
            return batch._replace(inputs=self._inputs(batch.inputs, batch.ids, keys), ids=ids)

    def _order(self, epoch: int) -> Int[Tensor, "N"]:
        """The ids in the order of an epoch."""
        if self.balanced:
            return balanced_order(self.seed, epoch, self.ids, self.labels[self.ids], len(self.split.source))
        return order(self.seed, epoch, self.ids) if self.shuffle else self.ids

    def _inputs(self, pixels: Tensor, ids: Int[Tensor, "B"], keys: Tensor) -> Tensor:
        mean, std = self.dataset.mean, self.dataset.std
        if not self.augment:
            return normalise(pixels, mean, std, self.channels_last)
        return augment(
            pixels,
            ids,
            kind=self.dataset.augmentation,
            keys=keys,
            mean=mean,
            std=std,
            channels_last=self.channels_last,
            cropped=self.store.cropped,
        )

    def weight(self, step: int) -> float:
        """This process's samples in a step's batch over the mean of all processes: 1 but in an uneven last batch."""
        if self.world == 1:
            return 1.0
        first, last = self._bounds(step)
        return (last - first) * self.world / min(self.batch_size, len(self.split) - step * self.batch_size)

    def _bounds(self, step: int) -> tuple[int, int]:
        """The slice of a step's batch that this process gets, as places in the epoch's order."""
        first = step * self.batch_size
        size = min(self.batch_size, len(self.split) - first)
        return first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world


def _check_labels(split: Split, classes: int, name: str) -> None:
    """A GPU would report a label that names no class late, and without saying which."""
    labels = split.source.labels[split.indices]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(split.indices[wrong[0]])
        raise ValueError(
            f"{name}: labels must be in 0...{classes - 1}, the classes, but the label of row {row} of {split.name} is "
            f"{int(labels[wrong[0]])}"
        )


def _steps(samples: int, batch_size: int, world: int, *, drop: bool) -> int:
    whole, rest = divmod(samples, batch_size)
    return whole + (rest // world > 1 if drop else rest > 0)
