"""Accuracy against cost, grouped over seeds: as a figure, as CSV and as LaTeX."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.measure.units import count, unit_of
from offramp.study.figures import exit_name
from offramp.study.plots import Curve, write_figure
from offramp.study.seeds import CurveGroup
from offramp.study.tables import TableValue, csv_text, latex_text

NAMES = {"accuracy": "accuracy", "top5": "top-5 accuracy"}


def deviation_key(key: str) -> str:
    """Where a point keeps the deviation of `accuracy` or `top5`."""
    return "deviation" if key == "accuracy" else "top5_deviation"


def draw(groups: Sequence[CurveGroup], title: str, cost: str, key: str, device: str, path: Path) -> None:
    """Every group's curves with standard deviations over seeds, as .svg, .pdf or .png.

    Args:
        cost: how operations are counted; plain network and baseline are drawn for `macs_cumulative` only.
        key: `accuracy` or `top5`.
        device: device of the figures.
    """
    unit, letter = unit_of(max(point["cost"] for group in groups for point in group.anytime))
    curves = []
    for look, group in enumerate(groups):
        name = f"{group.name}, " if len(groups) > 1 else ""
        lines: dict[str, list[dict[str, Any]]] = {
            "budgeted batch": sorted(group.budgeted, key=lambda point: float(point["cost"])),
            "anytime": group.anytime,
            "plain network": [group.plain] if cost == "macs_cumulative" else [],
            "baseline": [group.baseline] if group.baseline and cost == "macs_cumulative" else [],
        }
        for number, (kind, points) in enumerate(lines.items()):
            if points:
                colour = look if len(groups) > 1 else number
                curves.append(_curve(f"{name}{kind}", points, unit, key, colour, number))
    across = f"mean {cost} per image, {letter}".rstrip(", ")
    write_figure(path, f"{title}: test, on {device}", curves, across, f"{NAMES[key]}, %")


def _curve(name: str, points: Sequence[Mapping[str, Any]], unit: float, key: str, look: int, number: int) -> Curve:
    deviations = [point[deviation_key(key)] for point in points]
    return Curve(
        name,
        [(point["cost"] / unit, 100 * point[key]) for point in points],
        [] if None in deviations else [100 * deviation for deviation in deviations],
        look,
        number if None in deviations or number else None,  # 39 error bars would hide the line
        dashed=number == 1,
    )


def points_of(group: CurveGroup) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(curve, point, values) of a group: the plain network, every exit, every budget."""
    yield "plain", "final", group.plain
    if group.baseline:
        yield "baseline", "final", group.baseline
    for exit, point in enumerate(group.anytime):
        yield "anytime", exit_name(exit, len(group.anytime)), point
    for point in group.budgeted:
        yield "budgeted", f"q = {point['q']:.2f}", point


def csv_of(groups: Sequence[CurveGroup], cost: str, device: str) -> str:
    """One line per point, in shares and operations."""
    head = ["group", "seeds", "curve", "point", cost, "accuracy", "deviation", "top5", "top5_deviation"]
    rows: list[list[TableValue]] = [
        [group.name, len(group.seeds), curve, name, *(point[key] for key in ("cost", *head[5:])), device]
        for group in groups
        for curve, name, point in points_of(group)
    ]
    return csv_text([*head, "device"], rows)


def latex_of(groups: Sequence[CurveGroup], title: str, cost: str, key: str, device: str) -> str:
    """The plain network, every exit and every fourth budget, in percent and operations."""
    rows = [
        [group.name, str(len(group.seeds)), f"{curve}, {name}", count(point["cost"]), cell(point, key)]
        for group in groups
        for curve, name, point in points_of(group)
        if curve != "budgeted" or round(point["q"] * 20) % 4 == 0
    ]
    caption = f"{title}: {NAMES[key]} in percent on test, on {device}, mean ± standard deviation over seeds (n - 1)."
    return latex_text(caption, ["runs", "seeds", "point", cost, NAMES[key]], rows)


def cell(point: Mapping[str, Any], key: str) -> str:
    """Percent: `57.03 ± 0.21`, or `57.03` of one seed."""
    deviation = point[deviation_key(key)]
    return f"{100 * point[key]:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
