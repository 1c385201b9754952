"""Printed and measured values side by side: cells, rows and tables as results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.papers.catalog import Protocol, config_of, runnable, training
from offramp.papers.tables import Cell, Row, Table
from offramp.study.ledger import Line
from offramp.study.statistics import Mean, mean

NEEDS_FULL = "needs ImageNet: full scale only"
NOT_RUN = "not run"


@dataclass(frozen=True)
class CellResult:
    """One cell: the printed value, and mean and deviation (n - 1) of `runs` seeds, in percent or GFLOPs.

    `measured` and `difference` are None if there is no run, `deviation` if there are fewer than two.
    """

    exit: int | str
    published: float
    measured: float | None = None
    deviation: float | None = None
    runs: int = 0
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class RowResult:
    """One row: what it is, its training, the seeds measured, and `state`: `measured`, or why it is not."""

    data: str
    network: str
    method: str
    variant: str
    training: str
    seeds: list[int]
    state: str
    cells: list[CellResult]


@dataclass(frozen=True)
class TableResult:
    """One table, printed beside measured; `columns` are the exits, and `ensemble`."""

    name: str
    title: str
    metric: str
    note: str
    columns: list[int | str]
    rows: list[RowResult]


def at_exit(line: Line, exit: int | str, metric: str) -> float | None:
    """The share that a run got right at an exit; None if it has no such exit or lacks the metric."""
    if exit == "ensemble":
        return line.ensemble if metric == "top1" else None
    shares = line.accuracy if metric == "top1" else line.top5 or ()
    if exit == "final":
        return shares[-1] if shares else None
    return shares[exit - 1] if isinstance(exit, int) and exit <= len(shares) else None


def table_result(
    table: Table,
    rows: Sequence[Row],
    lines: Mapping[str, Mapping[int, Line]],
    protocol: Protocol,
    failed: Mapping[str, str],
) -> TableResult:
    """A table with what the lines of a ledger, by training and seed, have of it.

    Args:
        rows: of the table, all or some.
        failed: why trainings failed, by name.
    """
    results = [_row(row, table.metric, lines.get(row.training, {}), protocol, failed) for row in rows]
    columns = list(dict.fromkeys(cell.exit for row in rows for cell in row.cells))
    order = sorted(
        columns, key=lambda exit: (exit == "ensemble", exit == "final", exit if isinstance(exit, int) else 0)
    )
    return TableResult(table.name, table.title, table.metric, table.note, order, results)


def _row(row: Row, metric: str, lines: Mapping[int, Line], protocol: Protocol, failed: Mapping[str, str]) -> RowResult:
    if metric == "gflops":
        costs = _costs(row, protocol) if not protocol.reduced else ()
        state = "computed" if costs else "of the full networks only"
        cells = [_cell(cell, [costs[_place(cell, costs)]] if costs else []) for cell in row.cells]
        return RowResult(row.data, row.network, row.method, row.variant, row.training, [], state, cells)
    cells = [
        _cell(cell, [100 * share for line in lines.values() if (share := at_exit(line, cell.exit, metric)) is not None])
        for cell in row.cells
    ]
    state = "measured" if lines else NOT_RUN
    if not runnable(training(row.training), protocol):
        state = NEEDS_FULL
    if row.training in failed:
        state = failed[row.training] if not lines else f"measured; one more seed: {failed[row.training]}"
    return RowResult(row.data, row.network, row.method, row.variant, row.training, sorted(lines), state, cells)


def _cell(cell: Cell, values: Sequence[float]) -> CellResult:
    if not values:
        return CellResult(cell.exit, cell.value, note=cell.note)
    average: Mean = mean(values)
    return CellResult(
        cell.exit, cell.value, average.mean, average.deviation, average.runs, average.mean - cell.value, note=cell.note
    )


def _place(cell: Cell, costs: Sequence[float]) -> int:
    return cell.exit - 1 if isinstance(cell.exit, int) else len(costs) - 1


def _costs(row: Row, protocol: Protocol) -> Sequence[float]:
    """GFLOPs of every exit as EED counts them, from the network on the meta device."""
    import torch

    from offramp.config import build_method, build_net, resolve
    from offramp.measure.cost import eed_flops
    from offramp.net import MultiExitNet

    config = resolve(config_of(training(row.training), protocol))
    with torch.device("meta"):
        net = build_net(config, build_method(config), classes=100, shape=(3, 32, 32))
    assert isinstance(net, MultiExitNet)
    return eed_flops(net, (3, 32, 32))
