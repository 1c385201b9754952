"""offramp report: one HTML file that shows what one or several runs do, to be read without a network."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.lookup import NotUnderstood
from offramp.measure.units import count, percent
from offramp.runs import LoadedRun, load_data, load_run

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.study.run_report import Seen


def report(
    *runs: Path,
    out: Path | None = None,
    weights: Literal["last", "best"] = "last",
    images: int = 8,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Accuracy against cost, who leaves where, reliability, the easiest and hardest images, costs, training: one file.

    Args:
        runs: Folders of trained runs; several are drawn into one chart.
        out: The file to write, else report.html in the run's folder; needed for several runs.
        weights: Those of the last epoch, or of the best one on val.
        images: How many of the easiest, and of the hardest, are shown of every exit; 0 needs no images at all where
            the traces are stored already.
        batch_size: Measure the milliseconds of every stage and branch at this batch size, here and now.
        data_dir: Where the data are, if not where they were.
        json: Print one JSON object.
    """
    from offramp.measure.provenance import provenance
    from offramp.study.report import page
    from offramp.train.run_dir import put

    target = _target(runs, out)
    if images < 0:
        raise NotUnderstood(f"--images must be 0 or more, got {images}")
    if batch_size is not None and batch_size < 1:
        raise NotUnderstood(f"--batch-size must be at least 1, got {batch_size}")
    opened = [load_run(run, weights) for run in runs]
    seen = [
        _see(loaded, name, weights, data_dir, images, batch_size, show=not json)
        for loaded, name in zip(opened, names(runs), strict=True)
    ]
    put(target, page(seen, provenance()))
    if json:
        emit({"report": str(target), "bytes": target.stat().st_size, "runs": [run.numbers for run in seen]})
    else:
        _show(seen, target)


def _target(runs: Sequence[Path], out: Path | None) -> Path:
    """Where the report is written, known to be possible before anything is computed."""
    if not runs:
        raise ValueError("name at least one run: offramp report RUN... --out report.html")
    real = [run.resolve() for run in runs]
    twice = next((run for place, run in enumerate(runs) if real[place] in real[:place]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: name every run once")
    if out is None and len(runs) > 1:
        raise ValueError(f"a report of {len(runs)} runs needs --out FILE")
    target = runs[0] / "report.html" if out is None else out
    if target.is_dir():
        raise ValueError(f"--out {target} is a folder: name a file in it, such as {target / 'report.html'}")
    if out is not None and not target.parent.is_dir():
        raise ValueError(f"--out {target} cannot be written: there is no folder {target.parent}; make it first")
    return target


def names(runs: Sequence[Path]) -> list[str]:
    """What the page calls the runs: the last part of their paths, or as much of the path as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(path[-depth:]) for path in parts]
        if len(set(found)) == len(found):
            break
    return found


def _see(
    loaded: LoadedRun, name: str, weights: str, data_dir: Path | None, images: int, batch_size: int | None, show: bool
) -> "Seen":
    """Everything that the page shows of one run, from its stored traces where there are some."""
    from offramp.cli.curves import both_curves
    from offramp.config import flat
    from offramp.early_exit.exit_scores import Rule
    from offramp.measure import cost
    from offramp.measure.accuracy import summary
    from offramp.measure.network_summary import describe
    from offramp.runs.latency import timed_pieces
    from offramp.runs.traces import calibration_trace, stored_trace, trace_split
    from offramp.study.run_report import Seen
    from offramp.train.run_dir import read_result

    @cache
    def data() -> "DataSet":
        return load_data(loaded, data_dir, show)

    history = _history(loaded.folder / "metrics.jsonl")
    training = read_result(loaded.folder)
    if images:
        data()  # before anything is computed
    held_out = calibration_trace(loaded, weights, data_dir, show) if loaded.config.holdout else None
    test = None if images else stored_trace(loaded, "test", weights)
    test = test or trace_split(loaded, data(), "test", show, weights)
    shape = tuple(loaded.about["shape"])
    rule = Rule(loaded.policy.score, loaded.policy.answer, loaded.policy.temperatures) if loaded.policy else Rule()
    return Seen(
        name=name,
        folder=str(loaded.folder),
        weights=weights,
        epoch=loaded.about["epoch"],
        config=flat(loaded.config),
        training=training,
        classes=loaded.about["classes"],
        trace=test,
        summary=summary(test),
        curves=both_curves(loaded, held_out, test, "macs_cumulative"),
        network=describe(loaded.net, shape),
        pieces=cost.measure(loaded.net, shape),
        ms=timed_pieces(loaded, batch_size, rule) if batch_size else None,
        batch_size=batch_size,
        policy=loaded.policy,
        fitted=loaded.fitted,
        history=history,
        pictures=data().splits["test"].source.batch if images else None,
        images=images,
    )


def _history(path: Path) -> list[dict[str, Any]]:
    """The run's record, which may be absent.

    Raises:
        ValueError: if a line of it is no record of a run.
    """
    import json

    needed = {"step": {"step"}, "epoch": {"epoch", "train"}}
    found: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        kind = record.get("kind") if isinstance(record, dict) else None
        if not isinstance(kind, str) or not needed.get(kind, {"?"}) <= set(record):
            raise ValueError(f"{path} is damaged: line {number} is no record of a step or an epoch")
        found.append(record)
    return found


def _show(seen: Sequence["Seen"], target: Path) -> None:
    from offramp.cli._console import stdout, table

    rows = []
    for run in seen:
        plain, leaving = run.curves["plain"], run.leaving
        row = [run.name, percent(plain["accuracy"]), count(plain["cost"])]
        rows.append([*row, percent(leaving["accuracy"]), count(leaving["cost"])] if leaving else [*row, "–", "–"])
    head = ["run", "plain %", "MACs", "policy %", "mean MACs"]
    stdout.print(table("on test", head, rows), soft_wrap=True)
    stdout.print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
