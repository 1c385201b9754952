"""The figures of a report, from plain numbers to SVG: accuracy against cost, leaving, reliability, training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from offramp.losses.dense_distillation import Teachers, pairs
from offramp.measure.accuracy import Bins
from offramp.measure.chart import LOOKS, Frame, Number, Series, plot, ticks
from offramp.measure.units import unit_of
from offramp.text import escaped

SHARE = [0, 0.2, 0.4, 0.6, 0.8, 1]
PERCENT = [0, 20, 40, 60, 80, 100]


class Figure(NamedTuple):
    """A picture, its legend: (colour, mark or None for a line alone, name), in the order drawn, and its numbers."""

    title: str
    svg: str
    legend: tuple[tuple[int, int | None, str], ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def exit_name(exit: int, exits: int) -> str:
    """`exit 1`, …, and `final` for the last."""
    return "final" if exit == exits - 1 else f"exit {exit + 1}"


def against_cost(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy against mean operations: every run's budgeted and anytime curve, its plain network, its policy.

    Args:
        runs: by name: `anytime` and `budgeted`, lists of {cost, accuracy}, `plain`, one, `policy` and `baseline`, one
            or None; points with a `deviation` get error bars.
    """
    most = max(point["cost"] for run in runs.values() for point in run["anytime"])
    size, letter = unit_of(most)

    def line(name: str, points: Iterable[Mapping[str, Any]], look: int, mark: int | None, dashed: bool) -> Series:
        ordered = sorted(points, key=lambda point: (point["cost"], point["accuracy"]))
        deviations = [point.get("deviation") for point in ordered]
        return Series(
            name,
            [(point["cost"] / size, 100 * point["accuracy"]) for point in ordered],
            look,
            mark,
            dashed=dashed,
            deviations=[] if None in deviations else [100 * (deviation or 0) for deviation in deviations],
        )

    series = []
    for look, (name, run) in enumerate(runs.items()):
        series += [
            line(f"{name}, budgeted batch", run["budgeted"], look, None, dashed=False),
            line(f"{name}, anytime", run["anytime"], look, 0, dashed=True),
            line(f"{name}, plain network", [run["plain"]], look, 1, dashed=False),
            line(f"{name}, baseline", [run["baseline"]] if run.get("baseline") else [], look, 2, dashed=False),
            line(f"{name}, its policy", [run["policy"]] if run["policy"] else [], look, 3, dashed=False),
        ]
    title = "Accuracy against cost on test"
    svg = plot(
        title,
        [line for line in series if line.points],
        f"mean multiply-adds per image, {letter}".rstrip(", "),
        "accuracy, %",
        size=(600, 400),
        about="Each run's accuracy at every mean cost; the same numbers are in the table below the picture.",
    )
    return Figure(title, svg, tuple((look % LOOKS, None, name) for look, name in enumerate(runs)))


def bar(shares: Sequence[Number], label: str) -> str:
    """A bar for a cell of a table: shares of the whole, side by side, the later the darker."""
    parts, x = [], 0.0
    for place, share in enumerate(shares):
        strength = shade(place, len(shares)) if len(shares) > 1 else 0.75
        parts.append(f'<rect x="{x:.2f}" width="{100 * share:.2f}" height="10" fill-opacity="{strength:.2f}"/>')
        x += 100 * float(share)
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escaped(label)}"><title>{escaped(label)}</title>{"".join(parts)}</svg>'
    )


def shade(place: int, parts: int) -> float:
    """How strong the colour of one of several parts in order is: light for the first, full for the last."""
    return 0.2 + 0.8 * place / max(parts - 1, 1)


def over_budgets(budgeted: Sequence[Mapping[str, Any]]) -> Figure:
    """The share of samples leaving at each exit, stacked, at every mean cost of the budgeted-batch curve."""
    points = sorted(budgeted, key=lambda point: float(point["cost"]))
    size, letter = unit_of(points[-1]["cost"])
    exits = len(points[0]["shares"])

    def stacked(frame: Frame) -> list[str]:
        parts = ['<g class="s0">']
        for exit in range(exits):
            lower, upper = (
                [(p["cost"] / size, min(100.0, 100 * sum(p["shares"][:end]))) for p in points]
                for end in (exit, exit + 1)
            )
            places = [frame.place(*point) for point in [*upper, *reversed(lower)]]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            tip = f"<title>{exit_name(exit, exits)}</title>"
            strength = f'fill="currentColor" fill-opacity="{shade(exit, exits):.2f}"'
            parts.append(f'<polygon points="{path}" {strength}>{tip}</polygon>')
        return [*parts, "</g>"]

    corners = Series("", [(p["cost"] / size, 0) for p in (points[0], points[-1])], 0, None, joined=False)
    label = f"mean multiply-adds per image, {letter}".rstrip(", ")
    title = "Where images exit at every budget"
    about = "The shares of every exit, one above the other, from the least to the largest budget."
    svg = plot(title, [corners], label, "share of images, %", size=(480, 300), up=PERCENT, under=stacked, about=about)
    return Figure(title, svg)


def diagram(bins: Bins, name: str) -> Figure:
    """A reliability diagram: how often the exit is right among predictions of about the same confidence."""
    n, total = len(bins.samples), sum(bins.samples)

    def columns(frame: Frame) -> list[str]:
        parts = ['<g class="s0">']
        for place, (count, right) in enumerate(zip(bins.samples, bins.accuracy, strict=True)):
            if count:
                (x, y), (end, base) = frame.place(place / n, right), frame.place((place + 1) / n, 0)
                tip = f"{count:,} images between {place / n:.2f} and {(place + 1) / n:.2f}, {100 * right:.1f} % right"
                strength = 0.2 + 0.8 * (count / max(bins.samples)) ** 0.5
                box = f'x="{x + 0.5:.1f}" y="{y:.1f}" width="{end - x - 1:.1f}" height="{base - y:.1f}"'
                parts.append(
                    f'<rect {box} fill="currentColor" fill-opacity="{strength:.2f}"><title>{tip}</title></rect>'
                )
        return [*parts, "</g>"]

    sure = [(c, r) for count, c, r in zip(bins.samples, bins.confidence, bins.accuracy, strict=True) if count]
    series = [
        Series("accuracy = confidence", [(0, 0), (1, 1)], 5, None, dashed=True),
        Series(name, sure, 1, 0, joined=False),
    ]
    title = f"Confidence against accuracy, {name}"
    about = f"Expected calibration error {100 * bins.error:.2f} points over {total:,} images."
    svg = plot(title, series, "confidence", "accuracy", across=SHARE, up=SHARE, under=columns, about=about)
    return Figure(title, svg, ((0, 1, "accuracy"), (1, 0, "mean confidence"), (5, None, "accuracy = confidence")))


def curves(
    title: str, lines: Mapping[str, Sequence[Number | None]], positions: Sequence[Number], x: str, y: str
) -> Figure:
    """Numbers over epochs or steps, one line each; a missing one (None) interrupts the line."""
    series = []
    few = len(positions) <= 40
    for look, (name, values) in enumerate(lines.items()):
        points = [(position, value) for position, value in zip(positions, values, strict=True) if value is not None]
        if points:
            series.append(Series(name, points, look, look if few else None, dashed=look >= LOOKS))
    places = [position for line in series for position, _ in line.points]
    svg = plot(title, series, x, y, across=_whole(places)) if series else ""
    legend = tuple((line.look % LOOKS, line.mark, line.name) for line in series)
    rows = (
        (f"{position:g}", *("–" if value is None else f"{value:.5g}" for value in row))
        for position, *row in zip(positions, *lines.values(), strict=True)
    )
    return Figure(title, svg, legend, (x, *lines), tuple(rows))


def _whole(values: Sequence[Number]) -> list[float]:
    """Ticks around whole numbers, at whole numbers only."""
    if len(set(values)) == 1:
        return [float(values[0]) + step for step in (-1, 0, 1)]
    return [tick for tick in ticks(values, 5) if tick.is_integer()]


def training(history: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Accuracy of every exit on val, and the terms of the loss, over epochs; none if nothing was recorded."""
    epochs = [record for record in history if record["kind"] == "epoch"]
    numbers = [record["epoch"] + 1 for record in epochs]
    figures = []
    val = [record.get("val_accuracy") for record in epochs]
    if any(val):
        exits = len(next(filter(None, val)))
        lines = {
            exit_name(exit, exits): [100 * accuracies[exit] if accuracies else None for accuracies in val]
            for exit in range(exits)
        }
        figures.append(curves("Accuracy on val", lines, numbers, "epoch", "accuracy, %"))
    names = list(dict.fromkeys(name for record in epochs for name in record.get("train", {})))
    names = names[1:] if len(names) == 2 else names  # the loss is its only term
    terms = {name: [record["train"].get(name) for record in epochs] for name in names}
    figures.append(curves("Loss on train, by its terms", terms, numbers, "epoch", "mean per step"))
    return [figure for figure in figures if figure.svg]


POINTS = 120
"""How many steps of a long history are drawn, evenly chosen, the last one included."""


def learned(history: Sequence[Mapping[str, Any]], exits: int) -> list[Figure]:
    """What the method learned beside the network and logged with every step: lists of numbers, over the steps.

    Loss weights, one per label and per pair of exits, are drawn by the exit that learns.
    """
    steps = [record for record in history if record["kind"] == "step"]
    known = {"kind", "epoch", "step", "lr", "loss", "terms"}
    names = (
        [name for name, value in steps[-1].items() if name not in known and isinstance(value, list)] if steps else []
    )
    every = -(-len(steps) // POINTS) or 1
    chosen = [*steps[-1::-every]][::-1]
    numbers = [record["step"] for record in chosen]
    figures = []
    for name in names:
        for title, columns in _groups(name, len(steps[-1][name]), exits):
            lines = {label: [record[name][place] for record in chosen] for label, place in columns}
            figures.append(curves(title, lines, numbers, "step", name))
    return [figure for figure in figures if figure.svg]


def _groups(name: str, length: int, exits: int) -> list[tuple[str, list[tuple[str, int]]]]:
    """(title, [(line, place in the list)]) of every picture that a logged list is drawn in."""
    kinds: tuple[Teachers, ...] = ("all", "final")
    for teachers in kinds:
        taught = pairs(exits, teachers)
        if exits > 1 and length == exits + len(taught):
            by_student: list[list[tuple[str, int]]] = [[("labels", exit)] for exit in range(exits)]
            for place, (teacher, student) in enumerate(taught, exits):
                by_student[student].append((exit_name(teacher, exits), place))
            return [(f"{name}: {exit_name(exit, exits)} learns from", part) for exit, part in enumerate(by_student)]
    names = [exit_name(place, exits) if length == exits else str(place + 1) for place in range(length)]
    return [(f"{name} over the steps", list(zip(names, range(length), strict=True)))]
