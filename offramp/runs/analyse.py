"""The papers' analyses of trained runs: where deeper exits go wrong, agreement, softmax statistics, dissimilarity."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp import digests, finite
from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError, with_parameters
from offramp.runs.comparison_folder import runs_of
from offramp.runs.made_from import made_from
from offramp.runs.report import names
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import Device, LoadedRun, RunLike, Weights, folder_of, load_run
from offramp.runs.trace_data import TraceData
from offramp.study.analyses import Agreement, GoWrong, RelativeExit, SoftmaxStatistics
from offramp.train.run_dir import put

if TYPE_CHECKING:
    from numpy import ndarray

CLASSES = 10
"""How many classes the second pair of dissimilarity matrices is of."""


@dataclass(frozen=True)
class ExitAnalysis:
    """One exit on test; shares and accuracies in [0, 1].

    Attributes:
        name: exit1, …, final.
        accuracy: of this exit alone; calibration_error: its expected calibration error.
        macs: multiply-adds of the stages up to this exit and of its own branch.
        relative_cost, relative_accuracy: relative to the final exit's `macs` and accuracy.
        ms: measured milliseconds per image up to this exit, and `relative_ms`; None unless `batch_size` was given.
        go_wrong: what later exits get wrong of what this one gets right; None for the final exit.
        agreement: with the final exit; None for the final exit.
        softmax: sorted probabilities and entropies.
        only_correct: ids of the samples that this exit alone classifies correctly.
    """

    name: str
    accuracy: float
    calibration_error: float
    macs: int
    relative_cost: float
    relative_accuracy: float
    ms: float | None
    relative_ms: float | None
    go_wrong: GoWrong | None
    agreement: Agreement | None
    softmax: SoftmaxStatistics
    only_correct: list[int]


@dataclass(frozen=True)
class RunAnalysis:
    """The exits of one run, from shallow to deep, the final one last; `samples` of test; accuracy of the ensemble.

    `made_from` are digests of configuration, weights and the trace of test.
    """

    name: str
    run: str
    weights: str
    epoch: int
    samples: int
    ensemble: float
    exits: list[ExitAnalysis]
    made_from: dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    """Analyses of runs, the files that were written, and where and with what it was computed."""

    runs: list[RunAnalysis]
    files: list[str]
    provenance: dict[str, Any]


@check_arguments
def analyse(
    *runs: RunLike,
    out: Path | str | None = None,
    weights: Weights = "last",
    top: int = 5,
    dissimilarity: int = 500,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> Analysis:
    """The analyses of MUSE (Fig. 4 to 6) and EED (Fig. 2 and 4) on test; writes analysis.json and figures as SVG.

    Args:
        runs: folders of trained runs, or of comparisons, of which all finished runs are taken.
        out: folder to write into; default: `analysis` in the run's (or the comparison's) folder.
        weights: `last` or `best` (on val).
        top: number of most probable classes that the partial entropy is computed over.
        dissimilarity: number of test images in the dissimilarity matrices of the final exit; 0: no matrices, and the
            data are not needed if traces are stored.
        batch_size: also measure milliseconds up to every exit on this machine, at this batch size.
        data_dir: data directory, if it has moved since training.
        device: what to compute on; `auto` is a GPU if there is one.
    Raises:
        ValueError: if no run is named, one is named twice, a number is out of range, or the folder cannot be written.
    """
    from offramp.measure.provenance import provenance
    from offramp.train.run_dir import writing_into

    folders = runs_of(runs)
    folder = _folder(runs, folders, out)
    _check(top, dissimilarity, batch_size)
    reporter = reporter or SILENT
    opened = [load_run(run, weights, with_policy=False, device=device) for run in folders]
    with writing_into(folder):
        results, files = [], []
        for loaded, name in zip(opened, names(folders), strict=True):
            features = bool(dissimilarity)
            trace = loaded.trace(
                "test", weights=weights, features=features, data_dir=data_dir, device=device, reporter=reporter
            )
            results.append(_analyse(loaded, name, trace, weights, top, batch_size))
            if dissimilarity:
                files.append(_write_matrices(folder, name, trace, dissimilarity))
        files += _write_curves(folder, results)
        result = Analysis(
            results, [str(folder / "analysis.json"), *map(str, files)], provenance(opened[0].config.device)
        )
        for file in files:
            put(file, digests.signed(file.read_text(encoding="utf-8"), {run.name: run.made_from for run in results}))
        stored = {**asdict(result), "digest": digests.of_bytes(finite.dumps(asdict(result)).encode())}
        put(folder / "analysis.json", finite.dumps(stored, indent=2) + "\n")
    return result


def _check(top: int, dissimilarity: int, batch_size: int | None) -> None:
    for name, value, least in (("top", top, 1), ("dissimilarity", dissimilarity, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise ParameterError(f"{name} must be at least {least}, got {value}", name)


def _folder(runs: Sequence[RunLike], folders: Sequence[Path], out: Path | str | None) -> Path:
    """The folder to write into; made if its parent exists."""
    if not folders:
        raise ValueError("name at least one run, as in `offramp analyse RUN`")
    if out is None and len(runs) > 1:
        raise with_parameters(ValueError(f"an analysis of {len(folders)} runs needs out=DIR"), "out")
    folder = folder_of(runs[0]) / "analysis" if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise with_parameters(ValueError(f"out {folder} is not a folder"), "out")
    if not folder.parent.is_dir():
        message = f"out {folder} cannot be written: there is no folder {folder.parent}; make it first"
        raise with_parameters(ValueError(message), "out")
    folder.mkdir(exist_ok=True)
    return folder


def _analyse(
    loaded: LoadedRun, name: str, trace: TraceData, weights: str, top: int, batch_size: int | None
) -> RunAnalysis:
    import torch

    from offramp.measure import cost
    from offramp.measure.accuracy import calibration_error, ensemble, top_k
    from offramp.study import analyses

    logits, labels = torch.from_numpy(trace.logits), torch.from_numpy(trace.labels)
    right = analyses.correct(trace.logits, trace.labels)
    accuracies = [float(exit.mean()) for exit in right]
    macs = cost.macs_of(loaded.pieces)
    relative = analyses.relative(accuracies, macs)
    ms = _milliseconds(loaded, batch_size)
    wrong, agree = [*analyses.go_wrong(right), None], [*analyses.agreement(right), None]
    errors, only = calibration_error(logits, labels), analyses.only_correct(right)
    exits = [
        ExitAnalysis(
            name=output,
            accuracy=accuracies[exit],
            calibration_error=errors[exit],
            macs=macs[exit],
            relative_cost=relative[exit].cost,
            relative_accuracy=relative[exit].accuracy,
            ms=ms[exit] if ms else None,
            relative_ms=ms[exit] / ms[-1] if ms else None,
            go_wrong=wrong[exit],
            agreement=agree[exit],
            softmax=analyses.softmax_statistics(trace.logits[exit], top),
            only_correct=[int(sample) for sample in trace.ids[only[exit]]],
        )
        for exit, output in enumerate(trace.outputs)
    ]
    whole = top_k(ensemble(logits)[None], labels)[0]
    origin = made_from(loaded, test=trace)
    return RunAnalysis(name, str(loaded.folder), weights, loaded.about["epoch"], len(labels), whole, exits, origin)


def _milliseconds(loaded: LoadedRun, batch_size: int | None) -> list[float] | None:
    """Measured milliseconds per image up to every exit, its own branch included and those before it left out."""
    if batch_size is None:
        return None
    from offramp.early_exit.exit_scores import Rule
    from offramp.runs.latency import timed_pieces

    pieces = timed_pieces(loaded, batch_size, Rule())
    return [stages + branch for stages, branch in zip(accumulate(pieces.stages), pieces.branches, strict=True)]


def _write_matrices(folder: Path, name: str, trace: TraceData, samples: int) -> Path:
    """The final exit's dissimilarities before and after its classifier, of all classes and of the first ten."""
    from offramp.study import analyses, analysis_figures

    assert trace.features is not None
    panels: dict[str, ndarray] = {}
    for classes in (None, CLASSES) if len(trace.classes) > CLASSES else (None,):
        places = analyses.sorted_sample(trace.labels, samples, classes)
        part = f"{len(places)} images" + (f" of {classes} classes" if classes else "")
        panels[f"before the classifier, {part}"] = analyses.dissimilarity(trace.features[-1][places])
        panels[f"after it, {part}"] = analyses.dissimilarity(trace.logits[-1][places])
    path = folder / f"dissimilarity-{name.replace('/', '-')}.svg"
    put(path, analysis_figures.matrices(f"Dissimilarity (1 - Pearson) of the final exit, {name}", panels))
    return path


def _write_curves(folder: Path, runs: Sequence[RunAnalysis]) -> list[Path]:
    from offramp.study import analysis_figures as figures
    from offramp.study.plots import write_figure

    wrong = {run.name: [exit.go_wrong.any_later if exit.go_wrong else None for exit in run.exits] for run in runs}
    costs = {run.name: [RelativeExit(exit.relative_cost, exit.relative_accuracy) for exit in run.exits] for run in runs}
    ranks = {run.name: run.exits[-1].softmax.rank_means for run in runs}
    written = {
        "go-wrong.svg": ("Right here, wrong at a later exit", figures.over_exits(wrong), "exit", "share, %"),
        "relative-cost.svg": (
            "Accuracy against multiply-adds, both relative to the final exit",
            figures.relative_curves(costs),
            "multiply-adds, % of the final exit's",
            "accuracy, % of the final exit's",
        ),
        "probabilities.svg": ("Mean probability by rank, final exit", figures.rank_curves(ranks), "rank", "mean, %"),
    }
    paths = []
    for file, (title, curves, across, up) in written.items():
        if curves:
            write_figure(folder / file, title, curves, across, up)
            paths.append(folder / file)
    return paths
