"""The papers' tables: printed cells, and the training behind every row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from offramp.lookup import ParameterError, nearest
from offramp.papers import catalog


@dataclass(frozen=True)
class Cell:
    """One printed number: `exit` is counted from 1, or `final` or `ensemble`; `value` is in percent."""

    exit: int | str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One printed row: its cells and the name of its training."""

    data: str
    network: str
    method: str
    variant: str
    training: str
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """How the row is called in this project's tables."""
        return " ".join(filter(None, (self.network, self.method, self.variant)))


@dataclass(frozen=True)
class Table:
    """One printed table; `metric` is `top1`, `top5` or `gflops`."""

    name: str
    title: str
    paper: str
    metric: str
    note: str
    rows: tuple[Row, ...]


FINAL = ("final", "main")
"""What the papers call the last exit where they do not count it."""


@cache
def cells() -> list[dict[str, Any]]:
    """Every printed cell, as in cells.jsonl."""
    text = (catalog.FOLDER / "cells.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def tables() -> dict[str, Table]:
    """All tables by name."""
    known = catalog.load("tables.yaml")
    return {name: _table(name, entry, known) for name, entry in known["tables"].items()}


def _table(name: str, entry: dict[str, Any], known: dict[str, Any]) -> Table:
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells():
        if (cell["paper"], cell["table"]) == (entry["paper"], entry["table"]):
            key = cell["dataset"], cell["network"], cell["method"], cell.get("variant", "")
            rows.setdefault(key, []).append(cell)
    metric = "gflops" if entry.get("costs") else next(iter(rows.values()))[0]["metric"]
    return Table(
        name=name,
        title=entry["title"],
        paper=entry["paper"],
        metric=metric,
        note=entry.get("note", ""),
        rows=tuple(_row(key, printed, entry["rows"], known) for key, printed in rows.items()),
    )


def _row(key: tuple[str, ...], printed: list[dict[str, Any]], rows: dict[str, str], known: dict[str, Any]) -> Row:
    data, network, method, variant = key
    exits_and_method = rows[f"{method} | {variant}" if variant else method]
    training = f"{known['data'][data]}.{known['networks'][network]}.{exits_and_method}"
    shown = tuple(
        Cell("final" if cell["exit"] in FINAL else cell["exit"], float(cell["value"]), cell.get("note", ""))
        for cell in printed
    )
    return Row(data, network, method, variant, catalog.training(training).name, shown)


def chosen(table: Table, words: Sequence[str]) -> tuple[Row, ...]:
    """The rows whose label, data or training contains one of the words, upper and lower case alike; all without words.

    Raises:
        ParameterError: if a word fits no row, with the nearest label.
    """
    names = {row: f"{row.label} {row.data} {row.training}".lower() for row in table.rows}
    for word in words:
        if not any(word.lower() in name for name in names.values()):
            labels = list(dict.fromkeys(row.label for row in table.rows))
            raise ParameterError(f"rows {word!r} fits no row of {table.name}: {nearest(word, labels)}", "rows")
    return tuple(row for row, name in names.items() if not words or any(word.lower() in name for word in words))
