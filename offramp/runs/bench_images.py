"""The images that `bench` measures on: of a run's test split, of a folder, or of the data that a bundle was made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp import trust
from offramp.lookup import with_parameters
from offramp.progress import Progress, no_progress
from offramp.runs.reporting import Reporter
from offramp.runs.run_data import check_data, with_data_dir

if TYPE_CHECKING:
    from numpy import ndarray

    from offramp.bundle.manifest import Manifest
    from offramp.bundle.preprocess import Preprocessing
    from offramp.data.splits import DataSet


POOL = 2**28
"""Bytes of images that are held in memory and drawn from."""


def of_test(data: "DataSet", largest: int) -> "ndarray":
    """Images of test: all, or as many as fit the memory for them, drawn with a fixed seed."""
    import numpy as np

    split = data.splits["test"]
    count = min(len(split), max(largest, POOL // int(np.prod(data.shape))))
    rows = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
    return split.source.batch(split.indices[rows])


def of_files(preprocessing: "Preprocessing", folder: Path, largest: int, reporter: Reporter) -> "ndarray":
    """The readable images of a folder.

    Raises:
        ValueError: if there is none.
    """
    import numpy as np

    from offramp.bundle.predict import find, read

    files, empty = find([folder])
    count = max(largest, POOL // int(np.prod(preprocessing.shape)))
    rows, pixels = next(read(preprocessing, files[:count], count), ([], []))
    bad = [row for row in rows + empty if row.error is not None]
    if not pixels:
        reason = f": {bad[0].image}: {bad[0].error}" if bad else ""
        raise ValueError(f"there is no image to measure on in {folder}{reason}")
    if bad:
        reporter.warn(f"{len(bad)} of {len(rows)} images could not be read and are left out")
    return np.stack(pixels)


def data_of(
    folder: Path,
    about: Any,
    data_dir: Path | None,
    progress: Progress = no_progress,
    otherwise: tuple[str, str] = ("images", "name a folder of images"),
) -> "DataSet":
    """The data set that a bundle was made of; one that would have to be fetched is not.

    Args:
        about: the provenance in its manifest.
        otherwise: the parameter that takes other images, and what to do with it.
    Raises:
        ValueError: asking for other images, if it does not record which data those are.
    """
    from offramp.config import build_data, unflat

    parameters = about.get("config")
    if (
        not isinstance(parameters, dict)
        or _fetched(parameters.get("data"))
        or (not data_dir and _fetched(parameters.get("data-dir")))
    ):
        raise with_parameters(
            ValueError(f"{folder} does not record which data it was made from: {otherwise[1]}"), otherwise[0]
        )
    kept = {key: value for key, value in parameters.items() if key.replace("-", "_") != "data.cache_dir"}
    trust.check(kept, folder)
    config = unflat(kept, str(folder))
    return build_data(with_data_dir(config, data_dir), progress=progress)


def of_bundle(
    folder: Path, manifest: "Manifest", images: Path | None, data_dir: Path | None, largest: int, reporter: Reporter
) -> tuple["ndarray", str]:
    """Images for a bundle, of a folder or of the data set that it was made of; and where they are from.

    Raises:
        ValueError: if there are none.
    """
    if images is not None:
        return of_files(manifest.preprocessing, images, largest, reporter), str(images)
    data = data_of(folder, manifest.provenance, data_dir, reporter.working)
    data = check_data(data, manifest.classes, manifest.preprocessing.shape, str(folder))
    return of_test(data, largest), "test"


def _fetched(place: object) -> bool:
    """Whether data would be looked for in the network, which is not for the maker of a bundle to decide."""
    return str(place).startswith("hub:")
