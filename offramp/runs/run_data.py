"""The data of a trained run: loaded from where they are now, and checked against what the run was trained on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.config import Config, build_data
from offramp.lookup import ParameterError, with_parameters
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import LoadedRun, MultiNetRun, config_errors

if TYPE_CHECKING:
    from offramp.data.splits import DataSet


def load_data(
    run: LoadedRun | MultiNetRun, data_dir: Path | str | None = None, reporter: Reporter = SILENT
) -> "DataSet":
    """The data set of a run, every image in the split where the run had it.

    Images that are new since are left out; with `data_dir`, those that fall into val, cal and test are used.

    Args:
        data_dir: read the data from here, if given.
        reporter: notified if images have to be decoded, and of new and missing images.
    Raises:
        ValueError: if the run was trained on other data; see `check_data`.
    """
    from offramp.runs.split import restore

    place = None if data_dir is None else Path(data_dir)
    with config_errors(run.folder, ParameterError):
        read = build_data(with_data_dir(run.config, place), progress=reporter.working)
    checked = check_data(read, run.about["classes"], run.about["shape"], str(run.folder))
    data, notes = restore(checked, run.folder, use_new=data_dir is not None)
    for note in (*checked.notes[len(read.notes) :], *notes):
        reporter.note(note)
    return data


def with_data_dir(config: Config, data_dir: Path | None) -> Config:
    """The configuration with its data in `data_dir`, the data set's folder or its parent; None: unchanged."""
    kind, colon, path = config.data.partition(":")
    if data_dir is None or not colon or kind in ("hub", "python"):
        return dataclasses.replace(config, data_dir=data_dir) if data_dir else config
    below = data_dir / Path(path).name
    return dataclasses.replace(config, data=f"{kind}:{below if below.exists() else data_dir}")


def check_data(data: "DataSet", classes: Sequence[str], shape: Sequence[int], owner: str) -> "DataSet":
    """Refuse data that are not those that `owner` (a run or a bundle) was trained on: labels would mean others.

    Args:
        classes: names of the C classes it was trained on; shape: of its inputs, (channels, height, width).
    Returns:
        The data set; classes whose names are in another Unicode form get those that the owner has, which is noted.
    Raises:
        ValueError: naming the first class, or the shape, that differs.
    """
    from offramp.data.class_names import respelled
    from offramp.meta_device import written

    data = respelled(data, classes)
    if tuple(data.shape) != tuple(shape):
        raise with_parameters(
            ValueError(
                f"{data.name} has images of {written(tuple(data.shape))}, but {owner} was trained on "
                f"{written(tuple(shape))}: name the data that it was trained on by data_dir"
            ),
            "data_dir",
        )
    if tuple(data.classes) != tuple(classes):
        pairs = zip((*data.classes, None), (*classes, None), strict=False)
        number, (here, recorded) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
        names = ["no such class" if name is None else repr(name) for name in (here, recorded)]
        raise with_parameters(
            ValueError(
                f"{data.name} has other classes than {owner} was trained on: class {number} is {names[0]}, not "
                f"{names[1]}; name the data that it was trained on by data_dir"
            ),
            "data_dir",
        )
    return data
