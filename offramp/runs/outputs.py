"""Tables and figures of a task as files; the ending of a name chooses what is written."""

from collections.abc import Callable, Sequence
from pathlib import Path

from offramp.lookup import ParameterError
from offramp.study.plots import FIGURES, check_figure
from offramp.train.run_dir import put

ENDINGS = (".csv", ".tex", *FIGURES)


def check_outputs(paths: Sequence[Path]) -> None:
    """Refuse files that cannot be written, before anything is computed.

    Raises:
        ParameterError: if an ending is not one of `ENDINGS`, or the folder does not exist.
        ImportError: if a figure needs matplotlib, with the command that installs it.
    """
    for path in paths:
        if path.suffix not in ENDINGS:
            *first, last = ENDINGS
            raise ParameterError(f"write takes files ending in {', '.join(first)} or {last}, got {path}", "write")
        if path.is_dir() or not path.parent.is_dir():
            reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}; make it first"
            raise ParameterError(f"write {path}: {reason}", "write")
        check_figure(path)


def write_outputs(
    paths: Sequence[Path], csv: Callable[[], str], latex: Callable[[], str], figure: Callable[[Path], list[Path]]
) -> list[str]:
    """Write every file; returns the names of all that were written.

    Args:
        figure: draws into a file, or several beside it, and returns them.
    """
    written: list[Path] = []
    for path in paths:
        if path.suffix in FIGURES:
            written += figure(path)
        else:
            put(path, csv() if path.suffix == ".csv" else latex())
            written.append(path)
    return [str(path) for path in written]
