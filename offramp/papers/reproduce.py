"""The papers' tables, figures and claims: train what a ledger lacks, and put printed beside measured values."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp import __version__
from offramp.config import resolve
from offramp.files import read_json
from offramp.lookup import ParameterError
from offramp.papers import analysed, catalog
from offramp.papers.catalog import FULL, Protocol, Training, config_of, folder_of, needs_run, protocol_from, runnable
from offramp.papers.claims import ClaimResult, decided
from offramp.papers.figures import BY_EPOCH, FigureResult, figure_result
from offramp.papers.lines import Measured, measured, short_version
from offramp.papers.plan import PlannedTraining, planned
from offramp.papers.selection import Selection, figures, select
from offramp.papers.values import TableResult, table_result
from offramp.runs.compare import LEDGER, CompareReporter, Silent, check_writable, train_all
from offramp.runs.sweep import Entry
from offramp.train.run_dir import RESULT, put

OUT = "runs/reproduce"
FAILURES = "failures.json"
"""Why runs of a folder failed, by training and seed."""


@dataclass(frozen=True)
class Reproduction:
    """Tables, figures and claims, printed beside measured.

    Attributes:
        name: what was asked for.
        protocol: `full`, `quick` or the name of the protocol's file.
        recipe: the options of a reduced protocol; empty for the papers' own.
        ledger: the file with a line per run.
        version: version of offramp that trained the runs; None if there are none.
        left_out: number of lines of the ledger that were not used, by reason.
        seeds: of all runs, rising.
        hours: of training of all runs together.
        hardware: what they were trained on.
        plan: what is left to train, if a plan was asked for.
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
    tables: list[TableResult]
    figures: list[FigureResult]
    claims: list[ClaimResult]
    plan: list[PlannedTraining]
    failed: list[dict[str, str]]


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
    jobs: int = 1,
    reporter: CompareReporter | None = None,
) -> Reproduction:
    """Train what a table, figure or claim of the papers needs and the ledger lacks; put printed beside measured values.

    The same call goes on with what was stopped or killed. Runs are shared between all tables of a folder and ledger.

    Args:
        name: a table, figure or claim (`offramp reproduce` lists them), a paper (muse, msd, eed, beed, hdkd), `claims`
            or `all`.
        quick: the reduced protocol that the package documents, instead of the papers' own recipes.
        protocol: another reduced protocol: a recipe's name or a YAML file.
        seeds: of every training.
        rows: words that choose rows of one table, such as `resnet18`; its claims are left out then.
        plan: train nothing, and measure what the missing runs would cost.
        show: train nothing.
        out: folder of the runs; default runs/reproduce, with the name of a reduced protocol.
        ledger: file to add a line per run to; default results.jsonl in `out`. What it lists is not trained again.
        data_dir: the folder of the data sets; default $OFFRAMP_DATA.
        jobs: how many runs at once, each with its share of the cores.
    Raises:
        ValueError: for a name that does not exist, with the nearest, and for data that are missing, before training.
        KeyboardInterrupt: after Ctrl-C, when every run has saved itself.
    """
    chosen = _protocol(quick, protocol)
    selection = select(name, rows)
    folder = Path(out) if out is not None else default_out(chosen)
    kept = ledger or folder / LEDGER
    reporter = reporter or Silent()
    needed = [one for one in selection.trainings(chosen) if runnable(one, chosen)]
    found = measured(kept, needed, chosen)
    costs: list[PlannedTraining] = []
    failed: list[dict[str, str]] = []
    if plan:
        present = {one.name: found.seeds(one.name) for one in needed}
        costs = planned(needed, present, seeds, chosen, reporter.working)
    elif not show:
        _refuse(jobs, seeds, kept, found)
        failed = _train(needed, seeds, chosen, folder, kept, found, data_dir, jobs, reporter)
        found = measured(kept, needed, chosen)
    if not plan and selection.figures:
        for run in analysed.analyse_runs(selection.figures, folder, kept, chosen, data_dir):
            reporter.note(f"{run}: analysed")
    return _result(name, selection, chosen, kept, found, costs, failed, failures(folder))


def _protocol(quick: bool, protocol: Path | str | None) -> Protocol:
    if quick and protocol is not None:
        raise ParameterError("quick and protocol both say how to train: give one of them", "quick", "protocol")
    return catalog.quick() if quick else protocol_from(protocol) if protocol is not None else FULL


def default_out(protocol: Protocol) -> Path:
    """The folder of the runs of a protocol, if no other is given."""
    return Path(f"{OUT}-{protocol.name}" if protocol.reduced else OUT)


def _refuse(jobs: int, seeds: Sequence[int], ledger: Path, found: Measured) -> None:
    if jobs < 1:
        raise ParameterError(f"jobs must be at least 1, got {jobs}", "jobs")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ParameterError("seeds must be different numbers, at least one", "seeds")
    check_writable(ledger)
    here = short_version(__version__)
    if found.version not in (None, here):
        raise ParameterError(
            f"ledger {ledger} has runs of version {found.version}, which are not mixed with those of this version, "
            f"{here}: take another ledger to train anew, or show=True to see what it has",
            "ledger",
            "show=True",
        )


def _train(
    trainings: Sequence[Training],
    seeds: Sequence[int],
    protocol: Protocol,
    folder: Path,
    ledger: Path,
    found: Measured,
    data_dir: Path | None,
    jobs: int,
    reporter: CompareReporter,
) -> list[dict[str, str]]:
    """Train what the ledger lacks, all trainings of a seed before the next seed; those that need another run last."""

    def entry(one: Training, seed: int) -> Entry:
        logged = ("train", "test") if one.name in by_epoch else ()
        config = config_of(one, protocol, folder)
        config = dataclasses.replace(config, seed=seed, data_dir=data_dir, log_accuracy=logged)
        return Entry(one.name, resolve(config), folder / folder_of(one.name, seed))

    drawn = [figure for figure in figures().values() if figure.analysis == BY_EPOCH]
    by_epoch = {name for figure in drawn for name in figure.trainings(protocol)}
    missing = [(one, seed) for seed in seeds for one in trainings if seed not in found.lines.get(one.name, {})]
    givers = {giver for one, _ in missing if (giver := needs_run(one))}
    first = [pair for pair in missing if needs_run(pair[0]) is None]
    first += [(catalog.training(name), seed) for name, seed in sorted(givers) if (name, seed) not in _names(first)]
    shared = {"protocol": protocol.name, "recipe": _recipe(protocol)}
    failed: list[dict[str, str]] = []
    for stage in (first, [pair for pair in missing if needs_run(pair[0]) is not None]):
        ready, waiting = _ready(stage, folder)
        failed += waiting
        if ready:
            entries = [entry(one, seed) for one, seed in ready]
            failed += train_all(entries, folder, jobs, ledger, reporter, shared=shared)[1]
    _keep_failures(folder, failed)
    return failed


def _names(pairs: Sequence[tuple[Training, int]]) -> set[tuple[str, int]]:
    return {(one.name, seed) for one, seed in pairs}


def _ready(
    pairs: Sequence[tuple[Training, int]], folder: Path
) -> tuple[list[tuple[Training, int]], list[dict[str, str]]]:
    """The runs whose giver of loss weights has finished in this folder, and why the others wait."""
    ready, waiting = [], []
    for one, seed in pairs:
        giver = needs_run(one)
        if giver is None or (folder / folder_of(*giver) / RESULT).is_file():
            ready.append((one, seed))
        else:
            reason = f"it takes the final weights of losses of {giver[0]} seed {giver[1]}, whose run is not in {folder}"
            waiting.append({"run": f"{one.name} seed {seed}", "reason": reason})
    return ready, waiting


def _keep_failures(folder: Path, failed: Sequence[Mapping[str, str]]) -> None:
    """Write why runs failed beside the runs; a run that succeeds at last leaves the list."""
    if failed or (folder / FAILURES).is_file():
        put(folder / FAILURES, json.dumps({one["run"]: one["reason"] for one in failed}, indent=1) + "\n")


def failures(folder: Path) -> dict[str, str]:
    """Why trainings failed in a folder, in a few words, by name of the training."""
    path = folder / FAILURES
    reasons = read_json(path, {str: str}) if path.is_file() else {}
    return {run.rpartition(" seed ")[0]: _in_short(run, reason) for run, reason in reasons.items()}


def _in_short(run: str, reason: str) -> str:
    diverged = reason.startswith("the loss term")
    return f"seed {run.rpartition(' seed ')[2]} {'diverged' if diverged else 'failed'}: {reason.partition(';')[0]}"


def _result(
    name: str,
    selection: Selection,
    protocol: Protocol,
    ledger: Path,
    found: Measured,
    costs: list[PlannedTraining],
    failed: list[dict[str, str]],
    reasons: Mapping[str, str],
) -> Reproduction:
    analyses = analysed.read(ledger, selection.trainings(protocol), protocol) if selection.figures else {}
    return Reproduction(
        name=name,
        protocol=protocol.name,
        recipe=_recipe(protocol),
        ledger=str(ledger),
        version=found.version,
        left_out=found.left_out,
        seeds=sorted({seed for _, seed in found.cost}),
        hours=sum(seconds for seconds, _ in found.cost.values()) / 3600,
        hardware=sorted({where for _, where in found.cost.values()}),
        tables=[table_result(table, rows, found.lines, protocol, reasons) for table, rows in selection.tables],
        figures=[figure_result(figure, found.lines, analyses, protocol) for figure in selection.figures],
        claims=[decided(claim, found.lines) for claim in selection.claims],
        plan=costs,
        failed=failed,
    )


def _recipe(protocol: Protocol) -> dict[str, Any]:
    return {**(protocol.values or {}), **({"width": protocol.width} if protocol.width else {})}


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
    chosen = _protocol(quick, protocol)
    everything = select("all")
    folder = Path(out) if out is not None else default_out(chosen)
    lines = measured(ledger or folder / LEDGER, everything.trainings(chosen), chosen).lines

    def entry(kind: str, name: str, title: str, selection: Selection) -> Available:
        needed = [one.name for one in selection.trainings(chosen)]
        there = [name for name in needed if name in lines]
        return Available(name, title, kind, len(there), len(needed), sum(len(lines[name]) for name in there))

    return [
        *(
            entry("table", table.name, table.title, Selection(tables=((table, rows),)))
            for table, rows in everything.tables
        ),
        *(entry("figure", one.name, one.title, Selection(figures=(one,))) for one in everything.figures),
        *(entry("claim", one.name, one.text, Selection(claims=(one,))) for one in everything.claims),
    ]
