"""Ledgers of measured runs: one JSON line each, as `offramp evaluate RUN --json` prints it; added to, never edited."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from offramp import methods
from offramp.early_exit.frontier import FrontierPoint
from offramp.hyperparameters import defaults
from offramp.lookup import ParameterError
from offramp.renamed import as_now
from offramp.text import as_typed
from offramp.train.run_dir import FREE, comparable


class Line(NamedTuple):
    """One measured run.

    `method` is its label, `common` what it shares with the runs that it may be compared with (see `common`).
    `accuracy` holds E shares; `top5` too, and `macs` the multiply-adds per image up to each exit; None in lines that
    lack them. So do lines that were written without `offramp evaluate --frontier`: `frontier` holds policies of rising
    cost, `area` the area under the budgeted curve, `images` digests of the images by split; and `auroc` and
    `calibration_error` E numbers. `device` is what all these figures were computed on.
    """

    method: str
    seed: int
    common: dict[str, Any]
    accuracy: tuple[float, ...]
    ensemble: float
    top5: tuple[float, ...] | None = None
    macs: tuple[int, ...] | None = None
    frontier: tuple[FrontierPoint, ...] | None = None
    area: float | None = None
    auroc: tuple[float | None, ...] | None = None
    calibration_error: tuple[float, ...] | None = None
    images: Mapping[str, str] | None = None
    device: str | None = None


def label(config: Mapping[str, Any]) -> str:
    """The method of a flat configuration, with the parameters that are not its defaults: `muse(alpha=0.1)`."""
    name = str(config["method"])
    usual = _usual(name)
    parameters = {key[7:]: value for key, value in config.items() if key.startswith("method.")}
    others = {
        key: value for key, value in parameters.items() if key not in usual or _plain(usual[key]) != _plain(value)
    }
    text = ",".join(f"{key}={as_typed(value)}" for key, value in others.items())
    return f"{name}({text})" if text else name


def _usual(name: str) -> dict[str, Any]:
    """The defaults of a method; none of those that are not installed or broken, and no `python:` module is imported."""
    try:
        return defaults(methods.find(name).build) if name in methods.available() else {}
    except ParameterError:
        return {}


def common(config: Mapping[str, Any], split: str = "test", weights: str = "last") -> dict[str, Any]:
    """What runs share that may be compared: everything but method, seed, and what does not change what is computed.

    Args:
        split, weights: on which split and with which epoch's weights it was evaluated.
    """
    shared = {
        key: _plain(value)
        for key, value in comparable(config).items()
        if key not in FREE and key not in ("method", "seed") and not key.startswith("method.")
    }
    return shared | {"evaluated": f"{weights} epoch on {split}"}


def read(path: Path) -> list[Line]:
    """All runs of a ledger, in its order; of runs with the same configuration and seed the last.

    Raises:
        ValueError: naming the file and the line, if it is not a ledger of runs.
    """
    lines: dict[str, Line] = {}
    for line, _ in runs(path):
        key = json.dumps([line.method, line.seed, line.common], sort_keys=True)
        lines.pop(key, None)
        lines[key] = line
    if not lines:
        raise ValueError(f"{path} contains no runs yet")
    return list(lines.values())


def runs(path: Path) -> list[tuple[Line, dict[str, Any]]]:
    """All lines of a ledger in its order, each with the object that is stored there.

    Raises:
        ValueError: naming the file and the line, if it is no ledger of runs.
    """
    return [_run(line, f"{path} line {number}") for number, line in enumerate(_lines(path), 1)]


def holds(path: Path, config: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether the ledger has a line of the run with this flat configuration that ended as `result.json` says.

    Raises:
        ValueError: naming the file and the line that is not JSON.
    """
    identity = _identity(config, trained)
    return path.is_file() and any(
        _identity(line["config"], line["training"]) == identity
        for line in (_json(text, f"{path} line {number}") for number, text in enumerate(_lines(path), 1))
        if isinstance(line.get("config"), dict) and isinstance(line.get("training"), dict)
    )


def lists(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether the ledger has a run of this flat configuration, wherever it was trained: its last epoch on test.

    Raises:
        ValueError: as `read`.
    """
    identity = label(config), int(config["seed"]), common(config)
    return path.is_file() and any((line.method, line.seed, line.common) == identity for line, _ in runs(path))


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line, in one write, so that a killed process leaves a whole line or none.

    A ledger is read elsewhere too: where this machine keeps its data is left out, `DIR` in commands. A last line that
    does not end, as some editors leave it, is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_portable(record)).encode() + b"\n"
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        os.fsync(file.fileno())


def _portable(record: Mapping[str, Any]) -> dict[str, Any]:
    place = record["config"].get("data-dir")
    if place is None:
        return dict(record)

    def without(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: without(part, name) for name, part in value.items()}
        if key == "command":
            return shlex.join("DIR" if word == place else word for word in shlex.split(value))
        return None if key == "data-dir" else value

    return without(record)  # type: ignore[no-any-return]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no ledger {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a ledger: it is not text ({error.reason})") from None
    return text.splitlines()


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON, as after an interrupted write ({error}): remove that line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not a JSON object")
    return record


def _run(text: str, where: str) -> tuple[Line, dict[str, Any]]:
    record = _json(text, where)
    try:
        config = as_now(record["config"])
        known = common(config, record["split"], record["weights"])
        accuracy = tuple(float(share) for share in record["accuracy"])
        top5 = tuple(float(share) for share in record["top5"]) if record.get("top5") else None
        macs = tuple(int(count) for count in record["macs"]) if record.get("macs") else None
        line = Line(label(config), int(config["seed"]), known, accuracy, float(record["ensemble"]), top5, macs)
        device = (record.get("provenance") or {}).get("device") or config.get("device")
        return line._replace(**_of_policies(record), device=device), record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where} is not a run ({type(error).__name__}: {error}): "
            "a line is the output of `offramp evaluate RUN --json`"
        ) from None


def _of_policies(record: Mapping[str, Any]) -> dict[str, Any]:
    """What newer lines say about early exit, as fields of `Line`."""
    area, errors = record.get("budgeted_area"), record.get("calibration_error")
    points = record.get("frontier")
    return {
        "frontier": tuple(FrontierPoint(**point) for point in points) if points else None,
        "area": None if area is None else float(area),
        "auroc": tuple(record["auroc"]) if record.get("auroc") else None,
        "calibration_error": tuple(map(float, errors)) if errors else None,
        "images": record.get("images"),
    }


def _identity(config: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """What tells one trained run from another: its configuration, and when its training began for the last time."""
    options = {key: _plain(value) for key, value in comparable(config).items() if key not in FREE}
    origin = trained.get("provenance") or {}
    return json.dumps([options, origin.get("date"), trained.get("seconds")], sort_keys=True)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
