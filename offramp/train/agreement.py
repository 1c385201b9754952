"""Whether all processes of a run were started alike: with the same options, data and checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offramp import digests
from offramp.data.split_record import labels_digest
from offramp.lookup import with_parameters
from offramp.text import as_typed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from offramp.data.splits import DataSet

LOCAL = {"data", "data-dir", "tensorboard", "threads"}
"""Options that may differ between machines: paths, threads, and what the first process alone does."""

SPLITS = "the splits"
"""What the processes say of their data, beside the options."""


def check_alike(fabric: "Fabric", config: Mapping[str, Any], data: "DataSet") -> None:
    """Refuse processes that would train something else than the first one, or wait for it for ever.

    Args:
        fabric: launched.
        config: the flat configuration of the run.
        data: its splits; ids, labels and classes are compared, not the images.
    Raises:
        ValueError: in every process, naming what differs.
    """
    if fabric.world_size == 1:
        return
    values = {key: as_typed(value) for key, value in config.items() if key not in LOCAL}
    every: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(every, {**values, SPLITS: _described(data)})
    first = every[0]
    for rank, other in enumerate(every):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                error = ValueError(
                    f"process {rank} has {key} {other.get(key)}, but process 0 has {first.get(key)}: start the same "
                    "command, with the same data, on every machine"
                )
                raise with_parameters(error, *{key} - {SPLITS})


def _described(data: "DataSet") -> str:
    """The sizes of the splits, and a digest of ids, labels and classes."""
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    ids = [(name, split.ids) for name, split in data.splits.items()]
    return f"{sizes} ({digests.of_arrays(ids, labels_digest(data))[:8]})"


def check_shared(fabric: "Fabric", folder: Path) -> None:
    """Refuse to resume if a process does not see the checkpoints that the first one sees.

    Raises:
        ValueError: in every process.
    """
    here = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    same = torch.tensor(float(fabric.broadcast(here) == here), device=fabric.device)
    if float(fabric.all_reduce(same, reduce_op="mean")) < 1:  # type: ignore[arg-type]
        raise with_parameters(
            ValueError(
                f"not all processes see the checkpoints in {folder}: choose an out that all machines share, or copy it"
            ),
            "out",
        )
