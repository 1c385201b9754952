"""Accuracy against cost on test: every exit on all samples (anytime), and budgeted batches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp import digests, finite
from offramp.argument_types import check_arguments
from offramp.config import flat
from offramp.lookup import ParameterError, with_parameters
from offramp.runs.baseline import BaselineLike
from offramp.runs.comparison_folder import runs_of
from offramp.runs.curve_points import baseline_point, both_curves
from offramp.runs.curves_text import comparison_text, curves_text
from offramp.runs.outputs import check_outputs, write_outputs
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import Device, LoadedRun, RunLike, Weights, folder_of, load_run
from offramp.study import curve_tables
from offramp.study.seeds import CurveGroup, best_of_models, group_curves
from offramp.train.run_dir import put

if TYPE_CHECKING:
    pass


METRICS = {"top1": "accuracy", "top5": "top5"}
"""{what is drawn: its key in a point}."""


@dataclass(frozen=True)
class Curves:
    """Accuracy in [0, 1] against mean cost per image in operations.

    Attributes:
        run: its folder.
        cost: how operations are counted, `macs_cumulative` or `msdnet_ops`.
        samples: how many of cal and test.
        anytime: every exit on all of test: `accuracy`, `top5` and `cost`.
        budgeted: 39 points of MSDNet's budgeted batches; empty if nothing was held out to fit thresholds on.
        plain: the network with its final exit alone.
        baseline: the plain network that was given to compare with, None without one.
        refused: why there are no budgeted batches; None if there are.
        made_from: digests of configuration, weights, and the traces of cal and test.
        picture: the SVG file.
        files: further files that were written.
    """

    run: str
    weights: str
    epoch: int
    cost: str
    samples: dict[str, int]
    anytime: list[dict[str, Any]]
    budgeted: list[dict[str, Any]]
    plain: dict[str, Any]
    refused: str | None
    made_from: dict[str, Any]
    provenance: dict[str, Any]
    picture: str
    files: list[str]
    baseline: dict[str, Any] | None = None

    def __str__(self) -> str:
        return curves_text(self, "accuracy")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@dataclass(frozen=True)
class CurveComparison:
    """Curves of several runs, and their means over seeds.

    Attributes:
        cost: how operations are counted; metric: accuracy to draw, `top1` or `top5`.
        groups: one for each set of runs that differ only in their seed.
        runs: the curves of each run.
        best: the best model of every budget, for each method of which there are several, such as one per depth.
        provenance: of the comparison.
        picture: the SVG file; files: further files that were written.
    """

    cost: str
    metric: str
    groups: list[CurveGroup]
    runs: list[Curves]
    best: dict[str, list[dict[str, Any]]]
    provenance: dict[str, Any]
    picture: str
    files: list[str]

    def __str__(self) -> str:
        return comparison_text(self, METRICS[self.metric])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def curves(
    run: RunLike,
    *,
    cost: str = "macs_cumulative",
    metric: str = "top1",
    weights: Weights = "last",
    data_dir: Path | None = None,
    baseline: BaselineLike | None = None,
    out: Path | None = None,
    write: Sequence[Path] = (),
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> Curves:
    """Accuracy against cost of a run on test: anytime prediction and, with thresholds fitted on cal, budgeted batches.

    Writes curves.json and curves.svg. Thresholds are fitted by MSDNet's geometric rule. A run without held-out data has
    only the curve of anytime prediction (the accuracy of every exit).

    Args:
        run: folder of a trained run, or an object that has one.
        cost: how operations are counted: `macs_cumulative` (multiply-adds), or `msdnet_ops` (as in the code of MSDNet);
            both include the branches of all earlier exits.
        metric: accuracy to draw, `top1` or `top5`.
        weights: `last` or `best` (on val).
        data_dir: data directory, if it has moved since training.
        device: what to compute on; `auto` is a GPU if there is one.
        baseline: the plain network to compare with, see `offramp.evaluate`.
        out: folder to write into; default: that of the run.
        write: also write these files: .csv and .tex tables; .svg, .pdf and .png figures.
    Raises:
        ValueError: if `out` or `write` cannot be written, or the baseline does not fit the run.
    """
    from offramp.train.run_dir import writing_into

    path = folder_of(run)
    folder = _folder(out or path, metric, write)
    loaded = load_run(path, weights, with_policy=False, device=device)
    with writing_into(folder):
        result = _measured(loaded, str(path), cost, weights, data_dir, baseline, folder, reporter or SILENT)
        files = _write(folder, result, [_group_of(loaded, result)], path.resolve().name, metric, write)
    return replace(result, files=files)


@check_arguments
def compare_curves(
    runs: Sequence[RunLike],
    out: Path | str,
    *,
    cost: str = "macs_cumulative",
    metric: str = "top1",
    weights: Weights = "last",
    data_dir: Path | None = None,
    baseline: BaselineLike | None = None,
    write: Sequence[Path] = (),
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> CurveComparison:
    """The curves of several runs in one picture, as mean and standard deviation over seeds.

    Args:
        runs: folders of trained runs, or of comparisons, of which all finished runs are taken.
        out: folder that curves.json and curves.svg are written into.
        cost, metric, weights, data_dir, device, baseline, write: as in `curves`; the baseline must fit every run.
    Raises:
        ValueError: if no run is named, one is named twice, `out` or `write` cannot be written, or the baseline does not
            fit a run.
    """
    from offramp.measure.provenance import provenance
    from offramp.train.run_dir import writing_into

    folder, paths = _folder(out, metric, write), runs_of(runs)
    if not paths:
        raise ValueError("name at least one run, as in compare_curves([RUN], out)")
    with writing_into(folder):
        results, configs = [], []
        for path in paths:
            loaded = load_run(path, weights, with_policy=False, device=device)
            results.append(_measured(loaded, str(path), cost, weights, data_dir, baseline, folder, reporter or SILENT))
            configs.append(flat(loaded.config))
        measured = configs, [one.run for one in results], [asdict(one) for one in results]
        groups, best = group_curves(*measured), best_of_models(*measured)
        result = CurveComparison(
            cost, metric, groups, results, best, provenance(configs[0]["device"]), str(folder / "curves.svg"), []
        )
        return replace(result, files=_write(folder, result, groups, f"{len(results)} runs", metric, write))


def _folder(out: Path | str, metric: str, write: Sequence[Path]) -> Path:
    folder = Path(out)
    if metric not in METRICS:
        raise ParameterError(f"metric must be top1 or top5, got {metric}", "metric")
    if folder.exists() and not folder.is_dir():
        message = f"out {folder} is a file: name the folder that the curves are written into"
        raise with_parameters(ValueError(message), "out")
    check_outputs(write)
    return folder


def _measured(
    loaded: LoadedRun,
    run: str,
    cost: str,
    weights: Weights,
    data_dir: Path | None,
    baseline: BaselineLike | None,
    folder: Path,
    reporter: Reporter,
) -> Curves:
    from offramp.measure.provenance import provenance
    from offramp.runs.made_from import made_from
    from offramp.runs.traces import both_traces

    held_out, test = both_traces(loaded, weights, data_dir, reporter)
    return Curves(
        run=run,
        weights=weights,
        epoch=loaded.about["epoch"],
        **both_curves(loaded, held_out, test, cost),
        refused=None
        if held_out
        else f"no budgeted batches: {run} was trained on everything (holdout 0), so there are "
        "no images to fit thresholds on",
        made_from=made_from(loaded, cal=held_out, test=test),
        provenance=provenance(loaded.config.device),
        picture=str(folder / "curves.svg"),
        files=[],
        baseline=None if baseline is None else baseline_point(loaded, baseline, test, weights, data_dir, reporter),
    )


def _group_of(loaded: LoadedRun, result: Curves) -> CurveGroup:
    (group,) = group_curves([flat(loaded.config)], [result.run], [asdict(result)])
    return group


def _write(
    folder: Path,
    result: Curves | CurveComparison,
    groups: Sequence[CurveGroup],
    title: str,
    metric: str,
    paths: Sequence[Path],
) -> list[str]:
    """curves.json and curves.svg, signed with what they were made from, and what else is asked for; returns that."""
    device = result.provenance["device"]

    def figure(path: Path) -> list[Path]:
        curve_tables.draw(groups, title, result.cost, METRICS[metric], device, path)
        return [path]

    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value for key, value in asdict(result).items() if key not in ("picture", "files")}
    digest = digests.of_bytes(finite.dumps(stored).encode())
    put(folder / "curves.json", finite.dumps({**stored, "digest": digest}, indent=2) + "\n")
    (picture,) = figure(folder / "curves.svg")
    runs = [result] if isinstance(result, Curves) else result.runs
    put(picture, digests.signed(picture.read_text(encoding="utf-8"), {one.run: one.made_from for one in runs}))
    return write_outputs(
        paths,
        lambda: curve_tables.csv_of(groups, result.cost, device),
        lambda: curve_tables.latex_of(groups, title, result.cost, METRICS[metric], device),
        figure,
    )
