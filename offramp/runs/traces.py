"""The traces of a run: computed once per split and weights, kept in its folder, used by every verb that needs them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.progress import Progress
from offramp.runs.run import LoadedRun, SeveralRun, load_data

if TYPE_CHECKING:
    from offramp.data.loading import Loader
    from offramp.data.splits import DataSet, Split
    from offramp.outputs import Trace

TRACES = "traces"
Run = LoadedRun | SeveralRun


def stored_trace(loaded: Run, split: str, weights: str) -> "Trace | None":
    """The trace in the run's folder, if it is of these weights, this configuration and this precision."""
    from offramp.measure.trace_file import Damaged, load

    try:
        return load(_place(loaded, split, weights), _depends(loaded, weights))
    except Damaged:
        return None


def trace_split(loaded: Run, data: "DataSet", split: str, progress: Progress, weights: str = "last") -> "Trace":
    """All exits' logits of a split, in the precision that the run was trained in; computed only if not stored yet."""
    found = stored_trace(loaded, split, weights)
    if found is not None and _is_of(found, data.splits[split]):
        return found
    return _compute(loaded, data, split, progress, weights)


def _is_of(found: "Trace", split: "Split") -> bool:
    """Whether a trace is of these very samples: images may have been added since, or the data be taken elsewhere."""
    from numpy import array_equal

    assert found.labels is not None
    return array_equal(found.ids, split.indices) and array_equal(found.labels, split.labels)


def _compute(loaded: Run, data: "DataSet", split: str, progress: Progress, weights: str) -> "Trace":
    from offramp.measure.trace import trace
    from offramp.measure.trace_file import store

    net, loader = loader_of(loaded, data, split)
    rows = data.splits[split]
    about, path = _depends(loaded, weights), _place(loaded, split, weights)
    with progress(f"evaluating {split}", len(rows)) as advance:
        if not os.access(loaded.folder, os.W_OK):  # somebody else's run can be read, but nothing be left in it
            return trace(net, loader.epoch(0), split, advance)
        return store(path, net, loader.epoch(0), len(rows), split, about, advance)


def loader_of(loaded: Run, data: "DataSet", split: str) -> tuple[Any, "Loader"]:
    """The network in the precision that the run was trained in, and the batches of a split on its device."""
    from offramp.data.loading import Loader
    from offramp.train.device import make_fabric

    fabric = make_fabric(loaded.config.recipe)
    net, rows = fabric.setup_module(loaded.net), data.splits[split]
    return net, Loader(rows, data, batch_size=256, device=fabric.device, augment=False, seed=0, channels_last=True)


def calibration_trace(loaded: LoadedRun, weights: str, data_dir: Path | str | None, progress: Progress) -> "Trace":
    """The trace of the split `cal`; the data are opened only if it is not stored yet.

    Raises:
        ValueError: if the run was trained on everything.
    """
    refusal = f"{loaded.folder} was trained on everything (holdout 0): there is no split to calibrate on"
    if loaded.config.holdout == 0:
        raise ValueError(refusal)
    found = stored_trace(loaded, "cal", weights)
    if found is not None:
        return found
    data = load_data(loaded, data_dir, progress)
    if "cal" not in data.splits:
        raise ValueError(refusal)
    return _compute(loaded, data, "cal", progress, weights)


def _place(loaded: Run, split: str, weights: str) -> Path:
    return loaded.folder / TRACES / f"{weights}-{split}.safetensors"


def _depends(loaded: Run, weights: str) -> dict[str, Any]:
    from offramp.digests import of_file
    from offramp.train.device import device_of, precision_of
    from offramp.train.run_dir import CONFIG

    recipe = loaded.config.recipe
    device = device_of(recipe.device)
    return {
        "weights": of_file(loaded.folder / f"{weights}.safetensors"),
        "config": of_file(loaded.folder / CONFIG),
        "device": device,
        "precision": precision_of(recipe.precision, device),
    }
