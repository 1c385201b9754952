"""Whether all processes of a run were started alike: with the same options, data and checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp import digests
from offramp.data.split_record import labels_digest
from offramp.lookup import with_parameters
from offramp.text import as_typed

if TYPE_CHECKING:
    from offramp.data.splits import DataSet

LOCAL = {"data", "data-dir", "tensorboard", "threads"}
"""Options that may differ between machines: paths, threads, and what the first process alone does."""

SPLITS = "the splits"
"""What the processes say of their data, beside the options."""


def state_of(config: Mapping[str, Any], data: "DataSet", folder: Path | None) -> dict[str, Any]:
    """What a process says of itself, for `check_alike`.

    Args:
        config: the flat configuration of the run.
        data: its splits; ids, labels and classes are compared, not the images.
        folder: of a run that is resumed.
    """
    values = {key: as_typed(value) for key, value in config.items() if key not in LOCAL}
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-*")) if folder else []
    return {"values": {**values, SPLITS: _described(data)}, "checkpoints": checkpoints}


def check_alike(states: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Refuse processes that would train something else than the first one, or wait for it for ever.

    Args:
        states: of all processes, from `state_of`.
        folder: of the run.
    Raises:
        ValueError: naming what differs.
    """
    first = states[0]["values"]
    for rank, state in enumerate(states):
        if state["checkpoints"] != states[0]["checkpoints"]:
            message = (
                f"not all processes see the checkpoints in {folder}: choose an out that all machines share, or copy it"
            )
            raise with_parameters(ValueError(message), "out")
        other = state["values"]
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
