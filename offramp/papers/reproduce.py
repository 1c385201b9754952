"""Tables, figures and claims of the papers: train the missing runs, compare published with measured values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp import __version__
from offramp.argument_types import check_arguments
from offramp.engine.choice import opened
from offramp.lookup import ParameterError
from offramp.papers import analysed, catalog
from offramp.papers.catalog import FULL, Protocol, protocol_from, runnable
from offramp.papers.claims import ClaimResult, decided
from offramp.papers.figures import FigureResult, figure_result
from offramp.papers.lines import MeasuredLines, measured, short_version
from offramp.papers.missing import failures, train_missing
from offramp.papers.plan import PlannedTraining, planned
from offramp.papers.selection import Selection, select
from offramp.papers.values import TableResult, table_result
from offramp.runs.compare import LEDGER
from offramp.runs.packing import Jobs, check_jobs
from offramp.runs.run import Device
from offramp.runs.train_all import CompareReporter, SilentCompare, check_writable

OUT = "runs/reproduce"


@dataclass(frozen=True)
class Reproduction:
    """Tables, figures and claims, published beside measured values; `print` shows them as text.

    Attributes:
        name: the name that was given.
        protocol: `full`, `quick` or the name of the protocol's file.
        recipe: the options of a reduced protocol; empty for the papers' own.
        ledger: the file with a line per run.
        version: version of offramp that trained the runs; None if there are none.
        left_out: number of lines of the ledger that were not used, by reason.
        seeds: seeds of all runs, ascending.
        hours: duration of the training of all runs together, in hours.
        hardware: hardware that they were trained on.
        trained_on: the same of the runs of each training, by its name.
        plan: the missing runs with their cost, if `plan` was set.
        failed: `run` and `reason` of the runs that failed.
    """

    name: str
    protocol: str
    recipe: dict[str, Any]
    ledger: str
    version: str | None
    left_out: dict[str, int]
    seeds: list[int]
    hours: float
    hardware: list[str]
    trained_on: dict[str, list[str]]
    tables: list[TableResult]
    figures: list[FigureResult]
    claims: list[ClaimResult]
    plan: list[PlannedTraining]
    failed: list[dict[str, str]]

    def __str__(self) -> str:
        from offramp.papers.render import as_text

        return as_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def reproduce(
    name: str,
    *,
    quick: bool = False,
    protocol: Path | str | None = None,
    seeds: Sequence[int] = (0,),
    rows: Sequence[str] = (),
    plan: bool = False,
    show: bool = False,
    out: Path | str | None = None,
    ledger: Path | None = None,
    data_dir: Path | None = None,
    jobs: Jobs = "auto",
    engine: str = "local",
    address: str | None = None,
    fetch: bool = False,
    device: Device = "auto",
    reporter: CompareReporter | None = None,
) -> Reproduction:
    """Train the missing runs of a table, figure or claim of the papers, and compare published with measured values.

    The same call continues after an interruption. Tables that need the same run share it in a folder and ledger.

    Args:
        name: a table, figure or claim (`offramp reproduce` lists them), a paper (muse, msd, eed, beed, hdkd), `claims`
            or `all`.
        quick: train by the reduced protocol (recipe quick-cifar100-resnet18) instead of the recipes of the papers.
        protocol: train by another reduced protocol: the name of a recipe, or a YAML file.
        seeds: seeds; every training is run once with each of them.
        rows: select the rows of one table whose names contain one of these words, such as `resnet18`; its claims are
            then omitted.
        plan: train nothing; estimate the cost of the missing runs from steps measured on this machine.
        show: train nothing; show what the ledger contains.
        out: folder of the runs; default runs/reproduce, with the name of a reduced protocol.
        ledger: file to add a line per run to; default: results.jsonl in `out`. Runs that it contains are not trained
            again.
        data_dir: the folder of the data sets; default $OFFRAMP_DATA.
        jobs: number of runs at a time, as in `offramp.compare`.
        engine, address, fetch: where the runs are trained, as in `offramp.compare`.
        device: what to train and compute on; `auto` is a GPU if there is one.
    Raises:
        ValueError: if the name does not exist (with the nearest), or data are missing; before anything is trained.
        KeyboardInterrupt: after Ctrl-C, when all runs are saved.
    """
    settings = _protocol(quick, protocol)
    selection = select(name, rows)
    folder = Path(out) if out is not None else default_out(settings)
    ledger_path = ledger or folder / LEDGER
    reporter = reporter or SilentCompare()
    needed = [one for one in selection.trainings(settings) if runnable(one, settings)]
    lines = measured(ledger_path, needed, settings)
    costs: list[PlannedTraining] = []
    failed: list[dict[str, str]] = []
    if plan:
        present = {one.name: lines.seeds(one.name) for one in needed}
        costs = planned(needed, present, seeds, settings, reporter.working, device)
    elif not show:
        _refuse(jobs, seeds, ledger_path, lines)
        with opened(engine, address, fetch) as where:
            failed = train_missing(
                needed, seeds, settings, folder, ledger_path, lines, data_dir, jobs, reporter, where, device
            )
        lines = measured(ledger_path, needed, settings)
    if not plan and selection.figures:
        for run in analysed.analyse_runs(selection.figures, folder, ledger_path, settings, data_dir, device):
            reporter.note(f"{run}: analysed")
    return _result(name, selection, settings, ledger_path, lines, costs, failed, failures(folder))


def _protocol(quick: bool, protocol: Path | str | None) -> Protocol:
    if quick and protocol is not None:
        raise ParameterError("quick and protocol both say how to train: give one of them", "quick", "protocol")
    return catalog.quick() if quick else protocol_from(protocol) if protocol is not None else FULL


def default_out(protocol: Protocol) -> Path:
    """The folder of the runs of a protocol, if no other is given."""
    return Path(f"{OUT}-{protocol.name}" if protocol.reduced else OUT)


def _refuse(jobs: Jobs, seeds: Sequence[int], ledger: Path, measured: MeasuredLines) -> None:
    check_jobs(jobs)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ParameterError("seeds must be different numbers, at least one", "seeds")
    check_writable(ledger)
    here = short_version(__version__)
    if measured.version not in (None, here):
        raise ParameterError(
            f"ledger {ledger} has runs of version {measured.version}, which are not mixed with those of this version, "
            f"{here}: take another ledger to train from scratch, or show=True to see what it has",
            "ledger",
            "show=True",
        )


def _result(
    name: str,
    selection: Selection,
    protocol: Protocol,
    ledger: Path,
    measured: MeasuredLines,
    costs: list[PlannedTraining],
    failed: list[dict[str, str]],
    reasons: Mapping[str, str],
) -> Reproduction:
    analyses = analysed.read(ledger, selection.trainings(protocol), protocol) if selection.figures else {}
    trained_on: dict[str, set[str]] = {}
    for (training, _), (_, where) in measured.cost.items():
        trained_on.setdefault(training, set()).add(where)
    return Reproduction(
        name=name,
        protocol=protocol.name,
        recipe=protocol.recipe,
        ledger=str(ledger),
        version=measured.version,
        left_out=measured.left_out,
        seeds=sorted({seed for _, seed in measured.cost}),
        hours=sum(seconds for seconds, _ in measured.cost.values()) / 3600,
        hardware=sorted({where for _, where in measured.cost.values()}),
        trained_on={training: sorted(places) for training, places in sorted(trained_on.items())},
        tables=[table_result(table, rows, measured.lines, protocol, reasons) for table, rows in selection.tables],
        figures=[figure_result(figure, measured.lines, analyses, protocol) for figure in selection.figures],
        claims=[decided(claim, measured.lines) for claim in selection.claims],
        plan=costs,
        failed=failed,
    )


@dataclass(frozen=True)
class Available:
    """A table, figure or claim, and how much of it a ledger has: trainings measured, trainings needed, runs."""

    name: str
    title: str
    kind: str
    measured: int
    trainings: int
    runs: int


def overview(
    *,
    quick: bool = False,
    protocol: Path | str | None = None,
    out: Path | str | None = None,
    ledger: Path | None = None,
) -> list[Available]:
    """Every table, figure and claim, with how much of it the ledger has; arguments as in `reproduce`."""
    settings = _protocol(quick, protocol)
    everything = select("all")
    folder = Path(out) if out is not None else default_out(settings)
    lines = measured(ledger or folder / LEDGER, everything.trainings(settings), settings).lines

    def entry(kind: str, name: str, title: str, selection: Selection) -> Available:
        needed = [one.name for one in selection.trainings(settings)]
        present = [name for name in needed if name in lines]
        return Available(name, title, kind, len(present), len(needed), sum(len(lines[name]) for name in present))

    return [
        *(
            entry("table", table.name, table.title, Selection(tables=((table, rows),)))
            for table, rows in everything.tables
        ),
        *(entry("figure", one.name, one.title, Selection(figures=(one,))) for one in everything.figures),
        *(entry("claim", one.name, one.text, Selection(claims=(one,))) for one in everything.claims),
    ]
