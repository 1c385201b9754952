"""What decides between methods: the cost of early exit at the plain network's accuracy, from the lines of a ledger."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from offramp.early_exit.frontier import DROPS, FrontierPoint, at_accuracy
from offramp.measure.units import count, decimal, percent
from offramp.study.ledger import Line
from offramp.study.statistics import mean, paired
from offramp.study.tables import TableValue

PLAIN = "vanilla"
"""The method that trains the plain network alone."""


class PlainNetworks(NamedTuple):
    """The plain network of every run: accuracies in [0, 1], multiply-adds per image.

    `name` says what it is; `by_seed` has a point for every seed, None if the final exit of each run is used.
    """

    name: str
    by_seed: dict[int, FrontierPoint] | None


@dataclass(frozen=True)
class MeanInterval:
    """A mean over seeds and its 95 % interval (Student's, n - 1); None of one seed."""

    mean: int | float
    interval95: list[float] | None


@dataclass(frozen=True)
class CostAt:
    """Cost at `drop` below the plain network's accuracy on cal, fitted there and reported on test.

    `accuracy` is the mean on test, `points` the same less the plain network's. All are None
    if no policy is that accurate in some run; `ms` also if it was not measured.
    """

    drop: float
    macs: MeanInterval | None
    ms: MeanInterval | None
    points: MeanInterval | None
    accuracy: int | float | None = None


@dataclass(frozen=True)
class MethodCosts:
    """One method: the seeds that its ledger lines have policies of, costs, and the area under the budgeted curve.

    `auroc` and `calibration_error` are means over seeds of each of its own exits; empty if a line lacks them.
    """

    method: str
    seeds: list[int]
    at_accuracy: list[CostAt]
    area: MeanInterval | None
    auroc: list[float | None]
    calibration_error: list[float]


def plain_networks(lines: Sequence[Line], plain: tuple[str, FrontierPoint] | None) -> PlainNetworks:
    """The plain networks to compare with: that of the baseline, else those of the method vanilla, else final exits.

    Args:
        plain: a name, and the point of a network that all runs are compared with.
    """
    if plain is not None:
        return PlainNetworks(f"baseline {plain[0]}", {line.seed: plain[1] for line in lines})
    plain_points = {line.seed: line.frontier[0] for line in lines if line.method == PLAIN and line.frontier}
    if plain_points:
        return PlainNetworks(f"plain = {PLAIN} with the same seed", plain_points)
    return PlainNetworks("plain = final exit of each network", None)


def method_costs(method: str, lines: Sequence[Line], plain: PlainNetworks) -> MethodCosts:
    """Costs of one method's runs."""
    pairs = [(line, point) for line in lines if line.frontier and (point := _plain_of(line, plain)) is not None]
    areas = [line.area for line, _ in pairs if line.area is not None]
    return MethodCosts(
        method,
        [line.seed for line, _ in pairs],
        [_at(pairs, drop) for drop in DROPS] if pairs else [],
        _figure(areas) if pairs and len(areas) == len(pairs) else None,
        _over_seeds([line.auroc for line in lines]),
        [share or 0.0 for share in _over_seeds([line.calibration_error for line in lines])],
    )


def _plain_of(line: Line, plain: PlainNetworks) -> FrontierPoint | None:
    if plain.by_seed is not None:
        return plain.by_seed.get(line.seed)
    final = [point for point in line.frontier or () if line.macs and point.costs["macs"] == line.macs[-1]]
    return final[0] if final else None


def _at(pairs: Sequence[tuple[Line, FrontierPoint]], drop: float) -> CostAt:
    reached = [at_accuracy(line.frontier or (), point.cal_accuracy - drop) for line, point in pairs]
    values = [cost for cost in reached if cost is not None]
    if len(values) < len(pairs):
        return CostAt(drop, None, None, None)
    differences = [cost.accuracy - point.accuracy for cost, (_, point) in zip(values, pairs, strict=True)]
    ms = [cost.costs["ms"] for cost in values if "ms" in cost.costs]
    macs = _figure([cost.costs["macs"] for cost in values])
    accuracy = mean([cost.accuracy for cost in values]).mean
    return CostAt(drop, macs, _figure(ms) if len(ms) == len(values) else None, _figure(differences), accuracy)


def _figure(values: Sequence[int | float]) -> MeanInterval:
    difference = paired([float(value) for value in values], [0.0] * len(values))
    interval = None if difference.low is None or difference.high is None else [difference.low, difference.high]
    return MeanInterval(difference.mean, interval)


def _over_seeds(lists: Sequence[tuple[float | None, ...] | None]) -> list[float | None]:
    """The mean of each place; None if a run has none; empty if lists are missing or of several lengths."""
    present = [values for values in lists if values]
    if not present or len(present) < len(lists) or len({len(values) for values in present}) > 1:
        return []
    return [
        None if None in column else mean([share for share in column if share is not None]).mean
        for column in zip(*present, strict=True)
    ]


HEAD = ("MACs at plain", "ms", "points", "MACs at -0.5", "ms", "points", "area %")
"""Columns of `cells`: at the plain network's accuracy, at 0.5 points below it, and the area."""


def cells(costs: MethodCosts) -> list[str]:
    """Means over seeds ± half of the 95 % interval; a dash if the ledger lacks them or no policy is that accurate."""
    texts = []
    for cost in costs.at_accuracy or [CostAt(drop, None, None, None) for drop in DROPS]:
        texts += [_cell(cost.macs, count), _cell(cost.ms, decimal), _cell(cost.points, _points)]
    return [*texts, _cell(costs.area, percent)]


def narrow_rows(costs: MethodCosts) -> list[list[str]]:
    """The same as rows for a terminal: where, operations, milliseconds, points; the last one is the area in percent."""
    texts = cells(costs)
    places = ["at plain", *(f"{-100 * drop:g} points" for drop in DROPS[1:])]
    rows = [[place, *texts[3 * number : 3 * number + 3]] for number, place in enumerate(places)]
    return [*rows, ["area %", texts[-1], "", ""]]


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.2f}"


def _cell(figure: MeanInterval | None, written: Callable[[float], str]) -> str:
    if figure is None:
        return "–"
    if figure.interval95 is None:
        return written(figure.mean)
    low, high = figure.interval95
    return f"{written(figure.mean)} ± {written((high - low) / 2).removeprefix('+')}"


def quality_cells(costs: MethodCosts, exits: int) -> list[str]:
    """Of each of this many exits, the area under the ROC curve and the calibration error in percent: `0.912 / 3.40`."""
    pairs = list(zip(costs.auroc, costs.calibration_error, strict=False))
    return ["–"] * (exits - len(pairs)) + [f"{decimal(area)} / {percent(error)}" for area, error in pairs]


def csv_rows(costs: MethodCosts) -> Iterator[tuple[str, str, MeanInterval]]:
    """(metric, column, figure) of everything that there is, in shares, operations and milliseconds."""
    for cost in costs.at_accuracy:
        column = f"{100 * cost.drop:g} points below plain"
        for name, figure in (("macs", cost.macs), ("ms", cost.ms), ("accuracy less plain", cost.points)):
            if figure is not None:
                yield name, column, figure
    if costs.area is not None:
        yield "area", "budgeted", costs.area
    exits = len(costs.auroc)
    for exit, (area, error) in enumerate(zip(costs.auroc, costs.calibration_error, strict=False)):
        name = "final" if exit == exits - 1 else f"exit {exit + 1}"
        if area is not None:
            yield "auroc", name, MeanInterval(area, None)
        yield "calibration_error", name, MeanInterval(error, None)


def csv_cells(figure: MeanInterval) -> list[TableValue]:
    """Mean, and the ends of its interval."""
    return [figure.mean, *(figure.interval95 or (None, None))]
