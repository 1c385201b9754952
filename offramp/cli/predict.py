"""offramp predict: run a bundle on image files; torch is not needed."""

import csv as csv_format
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.cli._options import Json
from offramp.lookup import ParameterError
from offramp.measure.units import percent
from offramp.text import csv_cell, shell_word

if TYPE_CHECKING:
    from offramp.bundle.predict import Prediction
    from offramp.bundle.read import Bundle


def predict(
    bundle: Path,
    *images: Path,
    runtime: Literal["onnx", "openvino"] = "onnx",
    batch_size: int = 1,
    first: int | None = None,
    from_: Annotated[int | None, Parameter(name="--from")] = None,
    state: Path | None = None,
    json: Json = False,
    csv: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Predict images with a bundle: label, probability, exit and time.

    The exit status is 1 if an image could not be read.

    Args:
        bundle: Folder that `offramp export` wrote.
        images: Image files, and folders of images.
        runtime: Runtime, in float32 on the CPU.
        batch_size: Images per batch; above 1, the time of an image is its share of the batch's.
        first: Run only the first N segments; images that have not exited are written to --state.
        from_: Continue after N segments with the images in --state.
        state: File that --first writes and --from reads.
        csv: Print comma-separated values.
    """
    _check(images, batch_size, first, from_, state, json and csv)
    from offramp.bundle.predict import warm_up
    from offramp.bundle.read import open_bundle

    opened = open_bundle(bundle, runtime, begin=from_ or 0, end=first)
    if first == len(opened.manifest.parts):
        raise ValueError(
            f"--first {first} are all segments of {bundle}: omit --first, there would be nothing left to run elsewhere"
        )
    rows, total = _rows(opened, images, batch_size, state)
    warm_up(opened, max(1, min(batch_size, total)))
    shown = _progress(rows, total, show=not json and not csv)
    if csv:
        failed = _csv(shown, opened.manifest.exits)
    else:
        failed = _whole(list(shown), opened, runtime, state if first else None, json)
    if failed:
        rest = "; the others were predicted" if failed < total else ""
        print(f"offramp: {failed} of {total} could not be read{rest}", file=sys.stderr)
        raise SystemExit(1)


def _check(
    images: tuple[Path, ...], batch_size: int, first: int | None, from_: int | None, state: Path | None, both: bool
) -> None:
    if both:
        raise ParameterError("--json and --csv exclude each other")
    if batch_size < 1:
        raise ParameterError(f"--batch-size must be at least 1, got {batch_size}")
    if first is not None and from_ is not None:
        raise ParameterError("--first and --from exclude each other: run one on each machine")
    for option, value in (("--first", first), ("--from", from_)):
        if value is not None and (value < 1 or state is None):
            raise ParameterError(f"{option} takes a number of segments from 1, and needs --state FILE")
    if state is not None and first is None and from_ is None:
        raise ParameterError("--state needs --first N or --from N")
    if from_ is not None and images:
        raise ParameterError("--from continues with the images in --state: it takes no others")
    if from_ is None and not images:
        raise ParameterError("name image files or folders of images")


def _rows(
    opened: "Bundle", images: tuple[Path, ...], size: int, state: Path | None
) -> tuple[Iterable["Prediction"], int]:
    """The rows as they come, and how many there will be."""
    from offramp.bundle import partial_state
    from offramp.bundle.predict import answers, begin, find, go_on

    if opened.begin:
        assert state is not None
        partial = partial_state.load(state, opened)
        return go_on(opened, partial, size), len(partial.names)
    files, empty = find(images)
    size = max(1, min(size, len(files)))
    rows = answers(opened, files, size) if state is None else begin(opened, files, size, state)
    return chain(empty, rows), len(files) + len(empty)


def _progress(rows: Iterable["Prediction"], total: int, show: bool) -> Iterator["Prediction"]:
    """The same rows, with a progress bar if there are many; an error is printed at once."""
    from offramp.cli._console import stderr, working

    with working("predicting", total, show and total > 20) as advance:
        for row in rows:
            if row.error is not None:
                stderr.print(f"offramp: {row.image}: {row.error}", highlight=False, soft_wrap=True, markup=False)
            advance(1)
            yield row


def _values(row: "Prediction", exits: int) -> dict[str, Any]:
    """One row for machines: exits are counted from 1, as everywhere in what is printed."""
    return {
        "image": row.image,
        "label": row.label,
        "class": row.index,
        "probability": row.probability,
        "exit": None if row.exit is None else row.exit + 1,
        "final": None if row.exit is None else row.exit + 1 == exits,
        "ms": row.ms,
        "error": row.error,
    }


def _csv(rows: Iterable["Prediction"], exits: int) -> int:
    """Print the rows as they come; how many have an error."""
    from offramp.bundle.predict import Prediction

    failed = 0
    writer = csv_format.DictWriter(sys.stdout, list(_values(Prediction(""), exits)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: csv_cell(value) for key, value in _values(row, exits).items()})
        failed += row.error is not None
    return failed


def _whole(rows: list["Prediction"], opened: "Bundle", runtime: str, state: Path | None, json: bool) -> int:
    """Print all rows as one JSON object or one table; how many have an error."""
    exits = opened.manifest.exits
    waiting = sum(row.error is None and row.label is None for row in rows)
    if json:
        emit(
            {
                "bundle": str(opened.folder),
                "digest": opened.manifest.digest,
                "runtime": runtime,
                "exits": exits,
                "state": None if state is None else str(state),
                "waiting": waiting,
                "images": [_values(row, exits) for row in rows],
            }
        )
    else:
        _table(rows, exits, waiting, state)
    return sum(row.error is not None for row in rows)


def _table(rows: list["Prediction"], exits: int, waiting: int, state: Path | None) -> None:
    from offramp.cli._console import console, stdout, table

    lines = []
    for row in rows:
        if row.error is None:
            exit = "continues" if row.exit is None else "final" if row.exit + 1 == exits else f"exit {row.exit + 1}"
            ms = "–" if row.ms is None else f"{row.ms:.2f}"
            lines.append([row.image, row.label or "–", percent(row.probability), exit, ms])
    if lines:
        output = table("", ["image", "label", "probability %", "exit", "ms"], lines)
        output.columns[0].overflow = output.columns[1].overflow = "fold"  # a name that is cut off names nothing
        # What is piped elsewhere is one line per image, however long its path.
        out = stdout if stdout.is_terminal else console(width=10_000)
        out.print(output, soft_wrap=True)
    if state is not None:
        text = f"{waiting} of {len(lines)} continue: `offramp predict BUNDLE --from N --state {shell_word(state)}`"
        stdout.print(text, highlight=False, soft_wrap=True, markup=False)
