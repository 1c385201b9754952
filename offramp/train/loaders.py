"""The batches that a training run reads: training, evaluation after every epoch, and held-out ones for the method."""

from functools import partial
from typing import Any, NamedTuple

import torch

from offramp.data.loading import Loader, Store
from offramp.data.splits import DataSet
from offramp.train.held_out import HeldOut
from offramp.train.numerics import layout
from offramp.train.recipe import Recipe

EVALUATED = 256
"""Least batch size of an evaluation."""


class Loaders(NamedTuple):
    """Batches on the run's device.

    Attributes:
        train: this process's share of the augmented training images.
        val: all of val, in order; None if nothing is held out.
        logged: the splits whose accuracy is only logged, each in order.
        held_out: this process's share of val in a separate order, for methods that learn from it.
    """

    train: Loader
    val: Loader | None
    logged: dict[str, Loader]
    held_out: HeldOut


def build_loaders(fabric: Any, recipe: Recipe, data: DataSet) -> Loaders:
    """The loaders of a run; `held_out` must not be used if there is no val split."""
    order = {"rank": fabric.global_rank, "world": fabric.world_size}
    evaluated = max(recipe.batch_size, EVALUATED)
    stores: dict[str, Store] = {}  # images of a split are on a GPU once, whatever reads them

    def loader(split: str, *, augment: bool = False, batch_size: int = recipe.batch_size, **order: Any) -> Loader:
        built = Loader(
            data.splits[split],
            data,
            batch_size=batch_size,
            augment=augment,
            device=fabric.device,
            seed=recipe.seed,
            channels_last=layout(recipe.memory_format) == torch.channels_last,
            store=stores.get(split),
            **order,
        )
        if not built.store.cropped:
            stores[split] = built.store
        return built

    train = loader("train", augment=True, balanced=recipe.balanced, **order)
    val = loader("val", batch_size=evaluated) if "val" in data.splits else None
    logged = {split: loader(split, batch_size=evaluated) for split in recipe.log_accuracy}
    held_out = partial(loader, "val", shuffle=True, **order)
    return Loaders(train, val, logged, HeldOut(held_out))
