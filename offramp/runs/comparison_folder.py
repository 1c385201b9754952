"""The folder of a comparison or a sweep: checked, claimed, and opened as its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.config import flat
from offramp.files import DRAFT, read_yaml
from offramp.lookup import with_parameters
from offramp.runs.run import RunLike, folder_of
from offramp.runs.run_entries import Entry
from offramp.train.run_dir import RESULT

COMPARISON = "comparison.yaml"


def claim(out: Path, entries: Sequence[Entry], shared: Mapping[str, Any]) -> None:
    """Make the folder this comparison's own, or recognise it, and every run's folder within it.

    Args:
        shared: what all runs of the folder have in common.
    Raises:
        ValueError: if it holds another comparison, naming the option that differs, or something else.
    """
    import yaml

    from offramp.train import run_dir

    path = out / COMPARISON
    if path.is_file():
        if differs := run_dir.difference(read_yaml(path), shared):
            message = f"{out} contains a comparison with another configuration: {differs}; nothing was trained. Choose "
            raise with_parameters(ValueError(f"{message}another out"), "out")
    else:
        run_dir.put(path, yaml.safe_dump(dict(shared), sort_keys=False))
    for entry in entries:
        run_dir.claim(entry.folder, flat(entry.config), resume=True)


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but a comparison.

    Raises:
        ValueError: naming the folder.
    """
    ours = {COMPARISON, f"{DRAFT}{COMPARISON}", ".lock"}
    if out.exists() and not out.is_dir():
        raise with_parameters(ValueError(f"{out} is not a folder; choose another out"), "out")
    if out.is_dir() and not (out / COMPARISON).is_file() and any(entry.name not in ours for entry in out.iterdir()):
        raise with_parameters(
            ValueError(f"{out} is not empty and does not contain an offramp comparison; choose another out"), "out"
        )


def runs_of(folders: Sequence[RunLike]) -> list[Path]:
    """The folders, with all finished runs of a comparison in place of its folder, by name.

    Raises:
        ValueError: if a comparison has no finished run yet, or a run is there twice.
    """
    runs: list[Path] = []
    for folder in map(folder_of, folders):
        if not (folder / COMPARISON).is_file():
            runs.append(folder)
            continue
        finished = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
        if not finished:
            raise ValueError(
                f"{folder} is a comparison without a finished run yet: the same `offramp compare` continues"
            )
        runs += finished
    places = [run.resolve() for run in runs]
    for number, run in enumerate(runs):
        if places[number] in places[:number]:
            raise ValueError(f"{run} is named twice: name every run once")
    return runs
