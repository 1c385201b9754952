"""The order of an epoch in which every class comes equally often, drawn from (seed, epoch) alone."""

import torch
from jaxtyping import Int
from torch import Tensor

from offramp.data.augment import BALANCE, order
from offramp.data.counter_hash import hashed


def balanced_order(
    seed: int, epoch: int, ids: Int[Tensor, "N"], labels: Int[Tensor, "N"], size: int
) -> Int[Tensor, "N"]:
    """As many entries as there are ids, equally many of each class (one more of some, which change by epoch).

    Images of small classes come several times, each time with other augmentation; of large classes a part comes, in
    every epoch another.

    Args:
        ids: of the samples; labels: of the same.
        size: larger than every id. An image that comes again is `id + size`, `id + 2 * size` and so on.
    """
    classes = sorted(set(labels.tolist()))
    each, more = divmod(len(ids), len(classes))
    chosen = []
    for place, name in enumerate(classes):
        quota = each + ((place + epoch) % len(classes) < more)
        members = ids[labels == name]
        turns = torch.cat([members + turn * size for turn in range(-(-quota // len(members)))])
        late = turns // size
        drawn = torch.argsort(hashed(seed, epoch, turns, BALANCE), stable=True)
        drawn = drawn[torch.argsort(late[drawn], stable=True)]  # all images before any of them comes again
        chosen.append(turns[drawn[:quota]])
    return order(seed, epoch, torch.cat(chosen))
