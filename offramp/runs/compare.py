"""Several methods with several seeds on the same network, data and recipe, and what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.config import Config, flat
from offramp.early_exit.frontier import FrontierPoint
from offramp.engine.choice import opened
from offramp.lookup import ParameterError, nearest, with_parameters
from offramp.runs import run_entries
from offramp.runs.grid import NO_GRID, Grid
from offramp.runs.outputs import check_outputs, write_outputs
from offramp.runs.packing import Jobs, check_jobs
from offramp.runs.run import Device
from offramp.runs.train_all import CompareReporter, SilentCompare, check_writable, train_all
from offramp.study import comparison, comparison_files
from offramp.study.comparison import Comparison
from offramp.study.comparison_text import comparison_text
from offramp.study.ledger import common as common_of

if TYPE_CHECKING:
    from offramp.study.ledger import Line

LEDGER = "results.jsonl"


@dataclass(frozen=True)
class ComparisonResult:
    """One comparison for each group of runs that were trained alike.

    Attributes:
        ledger: the file with a line per run.
        failed: `run` and `reason` of the runs that failed.
        files: tables and figures that were written.
    """

    ledger: str
    comparisons: list[Comparison]
    failed: list[dict[str, str]]
    files: list[str]

    def __str__(self) -> str:
        return "\n\n".join(map(comparison_text, self.comparisons))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def compare(
    config: Config,
    methods: Sequence[str | tuple[str, Mapping[str, Any]]],
    out: Path | str,
    *,
    seeds: Sequence[int] = (0,),
    jobs: Jobs = "auto",
    ledger: Path | None = None,
    grid: Grid | None = None,
    baseline: str | Path = "joint",
    metric: str = "top1",
    write: Sequence[Path] = (),
    engine: str = "local",
    address: str | None = None,
    fetch: bool = False,
    reporter: CompareReporter | None = None,
) -> ComparisonResult:
    """Train several methods with several seeds, each run in a process of its own, and compare them on test.

    The same call continues after an interruption; with more methods or seeds it trains the new ones.

    Args:
        config: the configuration that all runs share; its method and seed are not used.
        methods: names, or pairs of a name and the parameters of the method.
        out: folder of the comparison; every run is a folder in it.
        seeds: seeds; each method is trained once with each of them.
        jobs: number of runs at a time (on each node of a Ray cluster), each with an equal share of the cores; `auto`
            measures a few steps and chooses the number that finishes all runs soonest (on a Ray cluster, 1).
        ledger: file to add a line per run to; default: results.jsonl in `out`. Runs that it contains are not trained
            again.
        grid: values of further options, such as {"net": ["resnet18", "resnet34"], "branch": ["sketch", "byot"]}: all
            methods and seeds are trained with every combination, and compared within it.
        baseline: a method that the others are compared with, seed by seed; or the path of a plain network (a run
            without early exits, or a file of weights): the result contains the cost of early exit at its accuracy.
            Unless a path is given, the plain network is the run of the method vanilla with the same seed if the ledger
            contains it, else the final exit of each network.
        metric: `top1` or `top5`.
        write: also write these files: .csv and .tex tables; .svg, .pdf and .png figures.
        engine: `local` for processes of this machine, `ray` for a Ray cluster, whose nodes must share `out`.
        address: `HOST:PORT` of the Ray cluster's head; default: $RAY_ADDRESS, a cluster of this machine, or a new one.
        fetch: for Ray nodes that do not share `out`: each run is trained in a temporary folder of its node and
            fetched when it ends or is stopped.
    Returns:
        The comparison of all runs in the ledger that share the configuration; `failed` lists runs that failed.
    Raises:
        ValueError: if a name, parameter or folder is invalid; before anything is trained.
        KeyboardInterrupt: after Ctrl-C, when all runs are saved.
    """
    check_jobs(jobs)
    folder = Path(out)
    ledger_path = ledger or folder / LEDGER
    check_writable(ledger_path)
    check_outputs(write)
    pairs = [(method, {}) if isinstance(method, str) else method for method in methods]
    requested = run_entries.entries(config, pairs, seeds, folder, grid or NO_GRID)
    _check_metric(metric)
    _check_baseline(baseline, [entry.method for entry in requested], ledger_path)
    with opened(engine, address, fetch) as runner:
        entries, failed = train_all(
            requested, folder, jobs, ledger_path, reporter or SilentCompare(), grid or NO_GRID, engine=runner
        )
    commons = [common_of(flat(entry.config)) for entry in entries]
    runs = [entry.folder for entry in entries]
    device = entries[0].config.device
    comparisons = _comparisons(ledger_path, baseline, metric, device, runs=runs) if ledger_path.is_file() else []
    comparisons = [one for one in comparisons if one.common in commons]
    return ComparisonResult(str(ledger_path), comparisons, failed, _write(comparisons, write))


@check_arguments
def compare_ledger(
    ledger: Path | str,
    *,
    methods: Sequence[str] = (),
    baseline: str | Path = "joint",
    metric: str = "top1",
    write: Sequence[Path] = (),
    device: Device = "auto",
) -> ComparisonResult:
    """Compare the runs in a ledger; nothing is trained.

    Args:
        methods: labels of the methods to compare, as in the tables; default: all in the ledger.
        ledger, baseline, metric, write: as in `compare`.
        device: what to compute a baseline on that is a path; `auto` is a GPU if there is one.
    Raises:
        ValueError: if it is not a ledger, or a method or `baseline` is not in it.
    """
    check_outputs(write)
    comparisons = _comparisons(Path(ledger), baseline, metric, device, methods)
    return ComparisonResult(str(ledger), comparisons, [], _write(comparisons, write))


def _check_metric(metric: str) -> None:
    if metric not in comparison.METRICS:
        raise ParameterError(f"metric must be top1 or top5, got {metric}", "metric")


def _check_baseline(baseline: str | Path, methods: Sequence[str], ledger: Path) -> None:
    """Refuse a baseline that is no path, is not one of these methods, which will be trained, and not in the ledger."""
    from offramp.study.ledger import read

    labels = {*methods, "joint", *(line.method for line in read(ledger))} if ledger.is_file() else {*methods, "joint"}
    if str(baseline) not in labels and not Path(baseline).exists():
        known = nearest(str(baseline), sorted(labels))
        raise ParameterError(
            f"baseline {baseline} is neither a method of this comparison nor a path; {known}", "baseline"
        )


def _write(comparisons: list[Comparison], paths: Sequence[Path]) -> list[str]:
    def figures(path: Path) -> list[Path]:
        names = [path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, len(comparisons) + 1))]
        for one, name in zip(comparisons, names, strict=False):
            comparison_files.draw(one, name)
        return names[: len(comparisons)]

    return write_outputs(
        paths, lambda: comparison_files.csv_of(comparisons), lambda: comparison_files.latex_of(comparisons), figures
    )


def _comparisons(
    ledger: Path,
    baseline: str | Path,
    metric: str,
    device: Device,
    methods: Sequence[str] = (),
    runs: Sequence[Path] = (),
) -> list[Comparison]:
    from offramp.study.ledger import read

    lines = read(ledger)
    labels = list(dict.fromkeys(line.method for line in lines))
    for method in methods:
        if method not in labels:
            raise ParameterError(f"method {method} is not in {ledger}: {nearest(method, labels)}", "methods")
    plain = None
    if str(baseline) not in (*labels, "joint") and Path(baseline).exists():
        plain, baseline = _plain(Path(baseline), lines, runs, device), "joint"
    lines = [line for line in lines if not methods or line.method in methods]
    if baseline != "joint" and baseline not in labels:
        raise ParameterError(f"baseline {baseline} is not in {ledger}: {nearest(str(baseline), labels)}", "baseline")
    _check_metric(metric)
    if metric == "top5" and any(line.top5 is None for line in lines):
        raise ParameterError(f"metric top5: {ledger} has runs without top-5 accuracies", "metric")
    return comparison.compare(lines, str(baseline), metric, plain)


def _plain(baseline: Path, lines: Sequence["Line"], runs: Sequence[Path], device: Device) -> tuple[str, FrontierPoint]:
    """The plain network of a run or a file of weights, on the images of the ledger's runs.

    Args:
        runs: folders of the comparison's runs, for whose network a file of weights is.
    """
    from offramp.runs.evaluate import evaluate
    from offramp.runs.run import open_run

    if baseline.is_file():
        network = next((run for run in runs if (run / "last.safetensors").is_file()), None)
        if network is None:
            message = f"baseline {baseline} is a file of weights, and there is no run here whose network it is for"
            raise with_parameters(ValueError(f"{message}: name the folder of a run"), "baseline")
        plain = evaluate(network, baseline=baseline, frontier=True, device=device).baseline
        assert plain is not None
        costs = {"macs": float(plain.macs)} | ({} if plain.ms is None else {"ms": plain.ms})
        return str(baseline), FrontierPoint(plain.accuracy["cal"], plain.macs, plain.accuracy["test"], costs)
    exits = open_run(baseline, with_policy=False).net.exits
    result = evaluate(baseline, frontier=True, device=device) if exits == 1 else None
    if result is None or not result.frontier:
        raise with_parameters(
            ValueError(
                f"baseline {baseline} has {exits} exits or nothing held out: name a network that was "
                "trained without early exits (method=vanilla) on the same images"
            ),
            "baseline",
            "method",
        )
    if any(line.images and line.images != result.images for line in lines):
        raise with_parameters(
            ValueError(f"baseline {baseline} was trained and tested on other images than the runs of the ledger"),
            "baseline",
        )
    return str(baseline), result.frontier[0]
