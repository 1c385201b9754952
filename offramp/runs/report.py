"""One HTML file that shows what one or several runs do, to be read without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError, with_parameters
from offramp.measure.plain_network import plain_note
from offramp.measure.text_table import prose, text_table
from offramp.measure.units import count, percent
from offramp.runs.baseline import BaselineLike
from offramp.runs.comparison_folder import runs_of
from offramp.runs.frontier import rule_of
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import Device, LoadedRun, RunLike, Weights, as_trained, folder_of, load_run
from offramp.runs.run_data import load_data
from offramp.study.report_groups import RunGroup, groups_of

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.study.run_report import RunReport


@dataclass(frozen=True)
class Report:
    """The file, its size, and the numbers in it: accuracies in [0, 1], costs in multiply-adds.

    `groups` are the runs that differ only in their seed, as means and deviations; single runs too. `provenance` names
    the device.
    """

    report: str
    bytes: int
    runs: list[dict[str, Any]]
    groups: list[RunGroup]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        rows = []
        for run in self.runs:
            plain, leaving = run["plain"], run["policy"]
            row = [run["name"], percent(plain["accuracy"]), count(plain["cost"])]
            if baseline := run["baseline"]:
                row += [percent(baseline["accuracy"]), count(baseline["cost"])]
            rows.append([*row, percent(leaving["accuracy"]), count(leaving["cost"])] if leaving else [*row, "–", "–"])
        baselines = ["baseline %", "MACs"] if self.runs[0]["baseline"] else []
        title = f"on test, on {self.provenance['device']}"
        table = text_table(title, ["run", "plain %", "MACs", *baselines, "policy %", "mean MACs"], rows)
        exiting = [] if baselines else [run for run in self.runs if len(run["anytime"]) > 1]
        notes = [prose(f"{run['name']}: {_plain_note(run)}") for run in exiting]
        return "\n".join([table, *notes, f"{self.report} ({self.bytes / 1e6:.1f} MB)"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


def _plain_note(run: dict[str, Any]) -> str:
    return plain_note([point["accuracy"] for point in run["anytime"]])


@check_arguments
def report(
    *runs: RunLike,
    out: Path | None = None,
    weights: Weights = "last",
    images: int = 8,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    device: Device = "auto",
    baseline: BaselineLike | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Write one HTML file: accuracy against cost, exits, reliability, easiest and hardest images, costs, training.

    Args:
        runs: folders of trained runs, or of comparisons, of which all finished runs are taken; they share one chart.
        out: file to write; default: report.html in the folder of the run; required for several runs.
        weights: `last` or `best` (on val).
        images: number of easiest and of hardest images to show for every exit; 0: none, and the data are not needed if
            traces are stored.
        batch_size: also measure the milliseconds of every stage and branch on this machine, at this batch size.
        data_dir: data directory, if it has moved since training.
        device: what to compute on; `auto` is a GPU if there is one.
        baseline: the plain network to compare with, which must fit every run; see `offramp.evaluate`.
    Raises:
        ValueError: if no run is named, one is named twice, the baseline does not fit a run, or the file cannot be
            written.
    """
    from offramp import digests
    from offramp.measure.provenance import provenance
    from offramp.study.report import page
    from offramp.train.run_dir import put, writing_into

    folders = runs_of(runs)
    if out is None and len(runs) == 1 and folders != [folder_of(runs[0])]:
        out = folder_of(runs[0]) / "report.html"  # in the folder of the comparison
    target = _target(folders, out)
    if images < 0:
        raise ParameterError(f"images must be 0 or more, got {images}", "images")
    if batch_size is not None and batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, got {batch_size}", "batch_size")
    opened = [load_run(run, weights, device=device) for run in folders]
    with writing_into(target.parent):
        reports = [
            _report_run(loaded, name, weights, data_dir, baseline, images, batch_size, reporter or SILENT)
            for loaded, name in zip(opened, names(folders), strict=True)
        ]
        origin = provenance(opened[0].config.device)
        put(target, digests.signed(page(reports, origin), {one.name: one.made_from for one in reports}))
    return Report(str(target), target.stat().st_size, [run.numbers for run in reports], groups_of(reports), origin)


def _target(runs: Sequence[Path], out: Path | None) -> Path:
    """Where the report is written, known to be possible before anything is computed."""
    if not runs:
        raise ValueError("name at least one run, as in `offramp report RUN`")
    if out is None and len(runs) > 1:
        raise with_parameters(ValueError(f"a report of {len(runs)} runs needs out=FILE"), "out")
    target = runs[0] / "report.html" if out is None else out
    if target.is_dir():
        message = f"out {target} is a folder: name a file in it, such as {target / 'report.html'}"
        raise with_parameters(ValueError(message), "out")
    if out is not None and not target.parent.is_dir():
        message = f"out {target} cannot be written: there is no folder {target.parent}; make it first"
        raise with_parameters(ValueError(message), "out")
    return target


def names(runs: Sequence[Path]) -> list[str]:
    """Names of the runs on the page: the last part of their paths, or as many parts as distinguish them."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def _report_run(
    loaded: LoadedRun,
    name: str,
    weights: Weights,
    data_dir: Path | None,
    baseline: BaselineLike | None,
    images: int,
    batch_size: int | None,
    reporter: Reporter,
) -> "RunReport":
    """Everything that the page shows of one run, from its stored traces if there are any."""
    from offramp.config import flat
    from offramp.early_exit.failure_prediction import of_exits
    from offramp.measure.accuracy import summary
    from offramp.measure.network_summary import describe
    from offramp.runs.curve_points import baseline_point, both_curves
    from offramp.runs.latency import timed_pieces
    from offramp.runs.made_from import made_from
    from offramp.runs.traces import both_traces
    from offramp.study.run_report import RunReport
    from offramp.train.run_dir import read_history, read_result

    @cache
    def data() -> "DataSet":
        return load_data(loaded, data_dir, reporter)

    if images:
        data()  # before anything is computed
    held_out, test = both_traces(loaded, weights, data_dir, reporter, data() if images else None)
    shape = tuple(loaded.about["shape"])
    rule = rule_of(loaded)
    curves = both_curves(loaded, held_out, test, "macs_cumulative")
    point = None if baseline is None else baseline_point(loaded, baseline, test, weights, data_dir, reporter)
    curves["baseline"] = point and {key: point[key] for key in ("cost", "accuracy", "source")}
    return RunReport(
        name=name,
        folder=str(loaded.folder),
        weights=weights,
        epoch=loaded.about["epoch"],
        config=flat(as_trained(loaded)),
        precision=loaded.config.precision,
        training=read_result(loaded.folder),
        classes=loaded.about["classes"],
        trace=test,
        summary=summary(test),
        curves=curves,
        auroc=of_exits(test.logits.numpy(), test.labels.numpy(), rule),  # type: ignore[union-attr]
        network=describe(loaded.net, shape, running=loaded.inference_net),
        pieces=loaded.pieces,
        ms=timed_pieces(loaded, batch_size, rule) if batch_size else None,
        batch_size=batch_size,
        policy=loaded.policy,
        fitted=loaded.fitted,
        history=read_history(loaded.folder),
        pictures=data().splits["test"].source.batch if images else None,
        images=images,
        made_from={**made_from(loaded, cal=held_out, test=test), **_digests(loaded.folder)},
    )


def _digests(folder: Path) -> dict[str, str | None]:
    """Digests of the policy, the records and the result of a run; None for what it lacks."""
    from offramp import digests
    from offramp.train.run_dir import METRICS, POLICY, RESULT

    files = {"policy": folder / POLICY, "records": folder / METRICS, "result": folder / RESULT}
    return {name: digests.of_file(path) if path.is_file() else None for name, path in files.items()}
