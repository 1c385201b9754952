"""Analyses of runs for the figures, one JSON line per run beside the ledger, so that they outlive the runs' folders."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.config import read_yaml
from offramp.files import parse_json, read_text
from offramp.papers.catalog import Protocol, Training, runnable, training, values_of
from offramp.papers.figures import BEST, BLOCKS, BY_EPOCH, PER_EXIT, RunValues
from offramp.papers.lines import identity
from offramp.papers.selection import PaperFigure
from offramp.runs.run import Device
from offramp.study.ledger import append
from offramp.train.run_dir import CONFIG, METRICS, RESULT

LARGEST = 2**30
"""Bytes of a file of lines at most."""
LINE = {
    "training": str,
    "protocol": str,
    "seed": int,
    "exits": [{"name": str, "relative_ms": (float, None)}],
    "epochs": [{str: object}],
    "budgeted": [{str: object}],
    "blocks?": [{"where": str, "within": float, "between": float}],
    "curve?": [{"epoch": int, "val_accuracy": [float], "train": {str: float}}],
}
"""What a line holds, beside configuration and provenance."""


def file_of(ledger: Path) -> Path:
    """The file of analyses of a ledger: `results-analyses.jsonl` beside `results.jsonl`."""
    return ledger.with_name(f"{ledger.stem}-analyses.jsonl")


def read(ledger: Path, trainings: Sequence[Training], protocol: Protocol) -> dict[str, dict[int, RunValues]]:
    """The analyses of these trainings in this protocol, by name and seed.

    Raises:
        ValueError: naming the file and the line that is no analysis.
    """
    path = file_of(ledger)
    result: dict[str, dict[int, RunValues]] = {}
    if not path.is_file():
        return result
    names = {one.name for one in trainings}
    for number, text in enumerate(read_text(path, LARGEST).splitlines(), 1):
        line = parse_json(text, f"{path} line {number}", LINE)
        if line["training"] in names and line["protocol"] == protocol.name:
            values = RunValues(line["exits"], line["epochs"], line["budgeted"], line.get("blocks", ()))
            result.setdefault(line["training"], {})[line["seed"]] = values
    return result


def analyse_runs(
    figures: Sequence[PaperFigure],
    folder: Path,
    ledger: Path,
    protocol: Protocol,
    data_dir: Path | None,
    device: Device = "auto",
) -> list[str]:
    """Analyse the finished runs in a folder whose lines lack what figures need; returns the runs' names.

    Latencies, if a figure needs them, are those of single images on this machine's `device`.
    """
    from offramp.runs.analyse import analyse

    names = dict.fromkeys(_needed(figures, protocol, *PER_EXIT, BY_EPOCH, BEST, BLOCKS))
    budgeted, timed, mapped = (set(_needed(figures, protocol, kind)) for kind in (BEST, "relative_cost", BLOCKS))
    trainings = [one for one in map(training, names) if runnable(one, protocol)]
    stored = read(ledger, trainings, protocol)
    done = []
    for one, seed, run in runs_in(folder, trainings, protocol):
        config = read_yaml(run / CONFIG)
        known = stored.get(one.name, {}).get(seed)
        if known and not (
            (one.name in timed and known.exits[0]["relative_ms"] is None)
            or (one.name in budgeted and config["holdout"] and not known.budgeted)
            or (one.name in mapped and not known.blocks)
        ):
            continue
        place: dict[str, Any] = {"data_dir": data_dir, "device": device}
        result = analyse(run, dissimilarity=0, batch_size=1 if one.name in timed else None, **place)
        exits = [_plain(exit) for exit in result.runs[0].exits]
        config["data-dir"] = str(data_dir) if data_dir else config.get("data-dir")  # left out of the line, see `append`
        line = {"training": one.name, "protocol": protocol.name, "seed": seed, "samples": result.runs[0].samples}
        points = _budgeted(run, place) if one.name in budgeted else []
        blocks = _blocks(run, place) if one.name in mapped else []
        values = {"exits": exits, "epochs": _epochs(run), "budgeted": points, "blocks": blocks, "curve": _curve(run)}
        append(file_of(ledger), {**line, **values, "config": config, "provenance": result.provenance})
        done.append(f"{one.name} seed {seed}")
    return done


def _needed(figures: Sequence[PaperFigure], protocol: Protocol, *kinds: str) -> Iterator[str]:
    """Names of the trainings that figures of these analyses need."""
    yield from (name for one in figures if one.analysis in kinds for name in one.trainings(protocol))


def _epoch_records(run: Path) -> Iterator[dict[str, Any]]:
    records = (json.loads(line) for line in read_text(run / METRICS, LARGEST).splitlines())
    yield from (record for record in records if record["kind"] == "epoch")


def _epochs(run: Path) -> list[dict[str, Any]]:
    """What a run logged after every epoch, on train and test; nothing if it did not."""
    logged = [record["logged_only"] for record in _epoch_records(run) if "logged_only" in record]
    return [one for one in logged if {"train", "test"} <= set(one)]


def _curve(run: Path) -> list[dict[str, Any]]:
    """The learning curve: accuracy of every exit on val, and the mean of each term of the loss, by epoch."""
    keys = ("epoch", "val_accuracy", "train")
    return [{key: record[key] for key in keys} for record in _epoch_records(run)]


def _budgeted(run: Path, place: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of budgeted batches, without thresholds; operations are counted as MSDNet's code does."""
    from offramp.runs.curves import curves

    points = curves(run, cost="msdnet_ops", metric="top5", **place).budgeted
    return [{key: value for key, value in point.items() if key not in ("thresholds", "shares")} for point in points]


def _blocks(run: Path, place: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean dissimilarity of two images of one class, and of two classes, at the main output (EED, Fig. 4)."""
    from offramp.runs.run import load_run
    from offramp.study.analyses import dissimilarity, sorted_sample

    trace = load_run(run).trace("test", features=True, **place)
    assert trace.features is not None
    places = sorted_sample(trace.labels)
    same = trace.labels[places][:, None] == trace.labels[places][None]
    apart = ~np.eye(len(places), dtype=bool)
    blocks = []
    for where, rows in (("before the classifier", trace.features[-1]), ("after it", trace.logits[-1])):
        matrix = dissimilarity(rows[places])
        within, between = np.nanmean(matrix[same & apart]), np.nanmean(matrix[~same])
        blocks.append({"where": where, "within": float(within), "between": float(between)})
    return blocks


def runs_in(folder: Path, trainings: Sequence[Training], protocol: Protocol) -> Iterator[tuple[Training, int, Path]]:
    """The finished runs in a folder, or in comparisons within it, that are runs of these trainings."""
    wanted = {identity(values_of(one, protocol)): one for one in trainings}
    for path in sorted([*folder.glob(f"*/{RESULT}"), *folder.glob(f"*/*/{RESULT}")]):
        config = read_yaml(path.with_name(CONFIG))
        if (key := identity(config)) in wanted and key is not None:
            yield wanted[key], int(config["seed"]), path.parent


def _plain(exit: Any) -> dict[str, Any]:
    """An exit's analysis without the long lists."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(exit)))
    values["only_correct"] = len(values["only_correct"])
    values["softmax"]["rank_means"] = values["softmax"]["rank_means"][:5]
    return values
