"""Methods compared over seeds: means, deviations and paired differences per exit, as values and as Markdown."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.study.ledger import Line
from offramp.study.statistics import Difference, Mean, mean, paired
from offramp.train.run_dir import put

BEGIN, END = "<!-- offramp compare -->", "<!-- end of offramp compare -->"


@dataclass(frozen=True)
class Row:
    """One method: its seeds, and per column (exits shallow to deep, then the ensemble) its figures, as shares.

    A network with fewer exits than others has None for the shallow ones. `differences` and `pairs` are to the baseline
    on the same seeds; empty where no seed is shared.
    """

    method: str
    seeds: tuple[int, ...]
    means: tuple[Mean | None, ...]
    pairs: tuple[int, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Methods that were trained alike: what they share, the columns' names, and a row each, the baseline first."""

    common: dict[str, Any]
    columns: tuple[str, ...]
    baseline: str
    rows: tuple[Row, ...]


def compare(lines: Iterable[Line], baseline: str = "joint") -> list[Comparison]:
    """One comparison for each set of runs that differ in nothing but method and seed, in the ledger's order."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line.common, sort_keys=True), []).append(line)
    return [_compared(group, baseline) for group in groups.values()]


def _compared(lines: Sequence[Line], baseline: str) -> Comparison:
    exits = max(len(line.accuracy) for line in lines)
    runs: dict[str, dict[int, tuple[float | None, ...]]] = {baseline: {}}
    for line in lines:
        missing = (None,) * (exits - len(line.accuracy))
        runs.setdefault(line.method, {})[line.seed] = (*missing, *line.accuracy, line.ensemble)
    names = (*(f"exit {exit + 1}" for exit in range(exits - 1)), "final", "ensemble")
    rows = tuple(_row(method, found, runs[baseline], method == baseline) for method, found in runs.items() if found)
    return Comparison(lines[0].common, names, baseline, rows)


def _row(
    method: str,
    runs: dict[int, tuple[float | None, ...]],
    others: dict[int, tuple[float | None, ...]],
    is_baseline: bool,
) -> Row:
    seeds = tuple(sorted(runs))
    shared = () if is_baseline else tuple(seed for seed in seeds if seed in others)
    means, differences = [], []
    for column in range(len(runs[seeds[0]])):
        values = [value for seed in seeds if (value := runs[seed][column]) is not None]
        means.append(mean(values) if values else None)
        couples = [(runs[seed][column], others[seed][column]) for seed in shared]
        both = [(a, b) for a, b in couples if a is not None and b is not None]
        differences.append(paired([a for a, _ in both], [b for _, b in both]) if both else None)
    return Row(method, seeds, tuple(means), shared, tuple(differences) if shared else ())


def title(found: Comparison) -> str:
    """What was compared, in a line: network, exits, data and epochs."""
    of = found.common
    width = f" width {of['net.width']}" if of.get("net.width") else ""
    few = f", {of['per-class']} images per class" if of.get("per-class") else ""
    trained = f"{of.get('data')}{few}, {of.get('epochs')} epochs"
    return f"{of.get('net')}{width}, {of.get('branch')} exits, {trained}; {of.get('evaluated')}"


def values(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values: shares in [0, 1], null for what one seed cannot tell."""
    return {
        "common": found.common,
        "columns": list(found.columns),
        "baseline": found.baseline,
        "methods": [
            {
                "method": row.method,
                "seeds": list(row.seeds),
                "mean": [None if one is None else one.mean for one in row.means],
                "deviation": [None if one is None else one.deviation for one in row.means],
                "pairs": list(row.pairs),
                "difference": [None if one is None else one.mean for one in row.differences],
                "interval95": [
                    None if one is None or one.low is None else [one.low, one.high] for one in row.differences
                ],
            }
            for row in found.rows
        ],
    }


def mean_cell(found: Mean | None) -> str:
    """Percent: `57.03 ± 0.21`, mean and standard deviation; `57.03` of one seed."""
    if found is None:
        return "–"
    return f"{100 * found.mean:.2f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.2f}")


def difference_cell(found: Difference | None, brackets: bool) -> str:
    """Points: `+0.42 [-0.10, +0.94]`, or `+0.42 ± 0.52` without brackets; `+0.42` of one seed."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f}"
    if brackets:
        return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return f"{100 * found.mean:+.2f} ± {50 * (found.high - found.low):.2f}"


def counted(seeds: Sequence[int]) -> str:
    """How many seeds a figure stands on: `3`, or `one seed`, for which there is no interval."""
    return "one seed" if len(seeds) == 1 else str(len(seeds))


def markdown(found: Comparison) -> str:
    """Two tables: means with deviations, and differences to the baseline with their 95 % confidence intervals."""
    columns = list(found.columns)
    parts = [f"{title(found)}: accuracy in percent, mean ± standard deviation over seeds (n - 1).", ""]
    parts += _table(
        ["method", "seeds", *columns],
        [[f"`{row.method}`", counted(row.seeds), *map(mean_cell, row.means)] for row in found.rows],
    )
    others = [row for row in found.rows if row.differences]
    if others:
        parts += ["", f"Difference to `{found.baseline}` on the same seeds, in points [95 % confidence interval:"]
        parts += ["Student's t on the pairs, n - 1; not corrected for the number of comparisons].", ""]
        cells = [[difference_cell(one, brackets=True) for one in row.differences] for row in others]
        parts += _table(
            ["method", "pairs", *columns],
            [[f"`{row.method}`", counted(row.pairs), *line] for row, line in zip(others, cells, strict=True)],
        )
    return "\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def around(path: Path) -> tuple[str, str]:
    """What stands before and after the two markers of a document; nothing where there is none yet.

    Raises:
        ValueError: if the document is there and has not the two markers once, in their order.
    """
    if not path.exists():
        return "", ""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(
            f"{path} is left as it is: the table goes between a line `{BEGIN}` and a line `{END}`, once each"
        )
    return before, after


def write_block(path: Path, text: str) -> None:
    """Put the text between the two markers of a document, or into a new one; see `around` for what is refused."""
    before, after = around(path)
    block = f"{before}{BEGIN}\n{text}{END}" + (after or "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, block)
