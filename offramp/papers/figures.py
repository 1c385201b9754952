"""Figures as tables of what their analysis says of every run, exit by exit, over seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from offramp.early_exit.curves import best_per_budget
from offramp.papers.catalog import Protocol, runnable, training
from offramp.papers.selection import PaperFigure
from offramp.papers.values import NEEDS_FULL, NOT_RUN
from offramp.study.ledger import Line
from offramp.study.statistics import mean

Exit = Mapping[str, Any]


class RunValues(NamedTuple):
    """What `offramp.analyse` says of every exit of a run, as plain values.

    `epochs` are the accuracies logged after each epoch, `budgeted` the points of budgeted batches, `blocks` the mean
    dissimilarities within and between classes; empty without them.
    """

    exits: Sequence[Exit]
    epochs: Sequence[Mapping[str, Any]] = ()
    budgeted: Sequence[Mapping[str, Any]] = ()
    blocks: Sequence[Mapping[str, Any]] = ()


Analysed = Mapping[str, Mapping[int, RunValues]]
"""By name of the training and seed."""


@dataclass(frozen=True)
class FigureRow:
    """One exit of one training: a mean over its seeds and their deviation (n - 1) for each column."""

    training: str
    exit: str
    seeds: list[int]
    means: list[float | None]
    deviations: list[float | None]


@dataclass(frozen=True)
class FigureResult:
    """A figure as a table.

    Attributes:
        trainings: that it needs; measured: those of them with a run in the ledger.
        state: `measured`, or why it is not.
        columns: what the numbers of every row are.
    """

    name: str
    title: str
    analysis: str
    trainings: list[str]
    measured: list[str]
    state: str
    columns: list[str]
    rows: list[FigureRow]


def _share(*keys: str) -> Callable[[Exit], float | None]:
    """A share within an exit's analysis, in percent; None if it has none."""

    def value(exit: Exit) -> float | None:
        part: Any = exit
        for key in keys:
            part = None if part is None else part.get(key)
        return None if part is None else 100 * float(part)

    return value


def _disagreement(side: str) -> Callable[[Exit], float | None]:
    """Of all samples the share that one side alone gets right, in percent."""

    def value(exit: Exit) -> float | None:
        counts = exit["agreement"]
        return None if counts is None else 100 * counts[side] / sum(counts.values())

    return value


ACCURACY = "accuracy %"
PER_EXIT: dict[str, dict[str, Callable[[Exit], float | None]]] = {
    "go_wrong": {
        ACCURACY: _share("accuracy"),
        "of these wrong at some later exit %": _share("go_wrong", "any_later"),
        "wrong at all later exits %": _share("go_wrong", "all_later"),
    },
    "softmax_stats": {
        "mean largest probability %": lambda exit: 100 * exit["softmax"]["rank_means"][0],
        "mean second probability %": lambda exit: 100 * exit["softmax"]["rank_means"][1],
        "entropy of the top 5, nats": lambda exit: exit["softmax"]["entropy_top"],
        "entropy of all, nats": lambda exit: exit["softmax"]["entropy"],
    },
    "agreement": {
        "this exit alone right %": _disagreement("exit_only"),
        "main output alone right %": _disagreement("final_only"),
        "both right %": _disagreement("both"),
    },
    "relative_cost": {
        "operations, relative %": _share("relative_cost"),
        "accuracy, relative %": _share("relative_accuracy"),
        "latency, relative %": _share("relative_ms"),
    },
}
"""Figures that `offramp analyse` has the values of: columns, each from the analysis of one exit."""
BY_EPOCH = "accuracy_by_epoch"
"""Figures of accuracies that a run logged after every epoch (`log_accuracy`), on train and test."""
LOGGED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "main output": lambda values: values["exits"][-1],
    "ensemble": lambda values: values["ensemble"],
}
POINTS = 10
"""Epochs that such a figure shows, at equal distances."""
BEST = "best_per_budget"
"""Figures of the best of several models for each budget, by method; operations are counted as MSDNet's code does."""
BLOCKS = "rdm"
"""Figures of dissimilarity matrices (1 - Pearson, 500 images): clear blocks are low within classes, high between."""
BUDGETED = {"top-5 accuracy %": "top5", ACCURACY: "accuracy"}
FROM_LEDGER = ("accuracy_by_width", "accuracy_by_parameter")
"""Figures whose values are accuracies in the ledger."""


def figure_result(
    figure: PaperFigure, lines: Mapping[str, Mapping[int, Line]], analysed: Analysed, protocol: Protocol
) -> FigureResult:
    """What the runs in a ledger, by training and seed, and their analyses have of a figure."""
    needed = list(figure.trainings(protocol))
    measured = [name for name in needed if lines.get(name)]
    columns, rows = _table(figure.analysis, needed, lines, analysed)
    if not all(runnable(training(name), protocol) for name in needed):
        state = NEEDS_FULL
    elif rows:
        complete = figure.analysis == BEST or {row.training for row in rows} == set(needed)
        state = "measured" if complete else f"measured in part; {NOT_RUN}: the others"
    elif not measured:
        state = NOT_RUN
    elif figure.analysis == BY_EPOCH:
        state = "not available: no run in this folder logged its accuracy after every epoch (log_accuracy=train,test)"
    elif figure.analysis in (*PER_EXIT, BEST, BLOCKS):
        state = "not available: the runs are in the ledger, their folders are not there"
    else:
        state = f"not available: there is no analysis {figure.analysis} yet"
    return FigureResult(figure.name, figure.title, figure.analysis, needed, measured, state, columns, rows)


def _table(
    analysis: str, needed: Sequence[str], lines: Mapping[str, Mapping[int, Line]], analysed: Analysed
) -> tuple[list[str], list[FigureRow]]:
    if analysis in FROM_LEDGER:
        return [ACCURACY], list(_from_lines(needed, lines))
    if analysis == BY_EPOCH:
        columns = [f"{name}, {split} %" for split in ("train", "test") for name in LOGGED]
        return columns, list(_by_epoch(needed, analysed))
    if analysis == BLOCKS:
        return ["within classes", "between classes", "between - within"], list(_blocks(needed, analysed))
    if analysis == BEST:
        return list(BUDGETED), list(_best(needed, analysed))
    if analysis in PER_EXIT:
        return list(PER_EXIT[analysis]), list(_from_analyses(needed, analysed, PER_EXIT[analysis]))
    return [], []


def _from_lines(needed: Sequence[str], lines: Mapping[str, Mapping[int, Line]]) -> Iterator[FigureRow]:
    for name in needed:
        runs = lines.get(name, {})
        for place in range(min((len(line.accuracy) for line in runs.values()), default=0)):
            values = [[100 * line.accuracy[place]] for _, line in sorted(runs.items())]
            yield _row(name, f"exit {place + 1}", sorted(runs), values)


def _from_analyses(
    needed: Sequence[str], analysed: Analysed, columns: Mapping[str, Callable[[Exit], float | None]]
) -> Iterator[FigureRow]:
    for name in needed:
        runs = analysed.get(name, {})
        for place in range(min((len(run.exits) for run in runs.values()), default=0)):
            values = [[column(runs[seed].exits[place]) for column in columns.values()] for seed in sorted(runs)]
            if any(value is not None for run in values for value in run):
                yield _row(name, runs[min(runs)].exits[place]["name"], sorted(runs), values)


def _by_epoch(needed: Sequence[str], analysed: Analysed) -> Iterator[FigureRow]:
    for name in needed:
        runs = {seed: run.epochs for seed, run in analysed.get(name, {}).items() if run.epochs}
        epochs = min((len(logged) for logged in runs.values()), default=0)
        for epoch in sorted({round((point + 1) * epochs / POINTS) for point in range(POINTS)} - {0}):
            values = [
                [100 * value(runs[seed][epoch - 1][split]) for split in ("train", "test") for value in LOGGED.values()]
                for seed in sorted(runs)
            ]
            yield _row(name, f"epoch {epoch}", sorted(runs), values)


def _blocks(needed: Sequence[str], analysed: Analysed) -> Iterator[FigureRow]:
    for name in needed:
        runs = {seed: run.blocks for seed, run in sorted(analysed.get(name, {}).items()) if run.blocks}
        for place in range(min(map(len, runs.values()), default=0)):
            pairs = [(run[place]["within"], run[place]["between"]) for run in runs.values()]
            where = str(next(iter(runs.values()))[place]["where"])
            yield _row(name, where, list(runs), [[within, between, between - within] for within, between in pairs])


def _best(needed: Sequence[str], analysed: Analysed) -> Iterator[FigureRow]:
    """The envelope of all depths of a method, seed by seed, at budgets between the cheapest and the dearest point."""
    points = [point for runs in analysed.values() for run in runs.values() for point in run.budgeted]
    if not points:
        return
    low, high = (choose(point["held_out_cost"] for point in points) for choose in (min, max))
    budgets = [low + (high - low) * (point + 1) / POINTS for point in range(POINTS)]
    for method in dict.fromkeys(training(name).method for name in needed):
        depths = [name for name in needed if training(name).method == method]
        seeds = sorted(set.intersection(*(set(analysed.get(name, {})) for name in depths)))
        best = [best_per_budget({name: analysed[name][seed].budgeted for name in depths}, budgets) for seed in seeds]
        for place, budget in enumerate(budgets):
            there = [one[place] for one in best]
            if there and all(there):
                values = [[100 * float(point[key]) for key in BUDGETED.values()] for point in there if point]
                yield _row(method, f"{budget / 1e6:.1f} M", seeds, values)


def _row(name: str, exit: str, seeds: list[int], values: Sequence[Sequence[float | None]]) -> FigureRow:
    """Means over runs; `values` has a list per run, and a value per column."""
    averages = [
        mean(present) if (present := [one for one in column if one is not None]) else None
        for column in zip(*values, strict=True)
    ]
    means = [one.mean if one else None for one in averages]
    return FigureRow(name, exit, seeds, means, [one.deviation if one else None for one in averages])
