"""The run's record: metrics.jsonl, one JSON object per line, cut back to the checkpoint when a run is resumed."""

import os
from pathlib import Path
from typing import Any

from offramp import finite
from offramp.files import parse_json, write_errors
from offramp.lookup import with_parameters
from offramp.schema import check

_NUMBER = (float, None)  # null if it was not finite
_STEP = {"epoch": int, "step": int, "lr?": float, "loss?": _NUMBER, "terms?": {str: _NUMBER}}
_EPOCH = {
    "epoch": int,
    "step": int,
    "train": {str: _NUMBER},
    "val_accuracy": ([_NUMBER], None),
    "seconds?": float,
    "logged_only?": {str: {"exits": [_NUMBER], "ensemble": _NUMBER}},
}
_SETTINGS = {"precision_before?": str, "memory_format_before?": str, "memory_format?": str}
_DEVICE = {"step": int, "before": str, "device": str, "precision": str, **_SETTINGS}
CONTENT: dict[str, Any] = {"step": _STEP, "epoch": _EPOCH, "device": _DEVICE}
"""Content of the records of every kind; see `offramp.schema`."""


class Metrics:
    """Append-only records of a run.

    Args:
        path: the metrics file; created if absent.
        offset: keep only this many bytes of the file (those written before the checkpoint).
        events: folder for TensorBoard events, or None.
    """

    def __init__(self, path: Path, offset: int = 0, events: Path | None = None, step: int = 0) -> None:
        self.path = path
        self.file = path.open("ab")
        self.file.truncate(offset)
        self.file.seek(0, os.SEEK_END)
        self.board = _board(events, step) if events else None

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; NaN and infinity are written as null."""
        with write_errors(self.path):
            self.file.write(finite.dumps(record).encode() + b"\n")
        if self.board and record["kind"] != "device":
            for name, value in _scalars(record):
                self.board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def flush(self) -> int:
        """Sync the file to disk; returns its size in bytes."""
        with write_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        if self.board:
            self.board.flush()
        return self.file.tell()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self.file.close()
        if self.board:
            self.board.close()


def seen_by(path: Path, size: int, steps: int, epochs: int) -> tuple[int, str]:
    """How much of a metrics file to keep when a run is resumed, and a sentence if records are missing.

    Args:
        size: bytes of the file at the time of the checkpoint.
        steps: number of steps taken by then.
        epochs: number of epochs finished by then.
    Returns:
        (bytes to keep, which end with a whole record; a note for the user, or "").
    Raises:
        ValueError: naming the line, if one of them is not a record.
    """
    text = path.read_bytes()[:size] if path.is_file() else b""
    limits = {"step": steps, "epoch": epochs}
    present: dict[str, set[int]] = {kind: set() for kind in limits}
    size_kept = 0
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        record = _record(path, number, line)
        if record["kind"] == "device":
            size_kept += len(line) + 1
            continue
        kind, place = record["kind"], record.get(record["kind"])
        if kind not in limits or not isinstance(place, int):
            raise ValueError(f"{path}, line {number}, is damaged: it is not a record of a step or an epoch")
        if place >= limits[kind]:
            break
        present[kind].add(place)
        size_kept += len(line) + 1
    lost = [
        f"{expected - len(present[kind]):,} of {expected:,} {kind}s"
        for kind, expected in limits.items()
        if len(present[kind]) != expected
    ]
    if not lost:
        return size_kept, ""
    state = "was shortened" if path.is_file() else "is gone"
    return (
        size_kept,
        f"{path} {state}: the records of {' and '.join(lost)} are lost; training continues, and appends to the rest",
    )


def read(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """All complete records of a metrics file, or those of one kind.

    Raises:
        ValueError: naming the file and the line, if one is not a record or has a value of another type.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [_record(path, number, line) for number, line in enumerate(lines, 1) if line]
    return [record for record in records if kind is None or record["kind"] == kind]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    where = f"{path}, line {number},"
    record: dict[str, Any] = parse_json(line, where, {"kind": str})
    check(record, CONTENT.get(record["kind"], {str: object}), f"{where} is damaged")
    return record


def _scalars(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            scalars += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            scalars += _scalars({str(index + 1): part for index, part in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("step", "epoch"):
            scalars.append((prefix + name, value))
    return scalars


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise with_parameters(
            ValueError("tensorboard needs a package that is not installed: pip install 'offramp[tensorboard]'"),
            "tensorboard",
        ) from None
    return SummaryWriter(str(folder), purge_step=step)
