"""One figure as a file: SVG without further packages, PDF and PNG through matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offramp.measure.chart import LOOKS, Number, Series, complete_svg
from offramp.train.run_dir import put

COLOURS = ("#0066a8", "#c75300", "#00805d", "#a8488f", "#a86d00", "#5b636d")
"""Those of the light style in `offramp.measure.chart`."""
MARKS = "os^D"
FIGURES = (".svg", ".pdf", ".png")


class Curve(NamedTuple):
    """Points that belong together.

    Attributes:
        points: (x, y); deviations: of each y, empty if there is one run; drawn as bars, or as a band without marks.
        look: its colour; mark: its shape, None for a line alone.
    """

    name: str
    points: Sequence[tuple[Number, Number]]
    deviations: Sequence[Number] = ()
    look: int = 0
    mark: int | None = 0
    dashed: bool = False


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be drawn here, before anything is computed.

    Raises:
        ImportError: with the command that installs matplotlib.
    """
    if path.suffix in (".pdf", ".png"):
        _matplotlib()


def write_figure(path: Path, title: str, curves: Sequence[Curve], x_label: str, y_label: str) -> None:
    """Draw curves with error bars into a .svg, .pdf or .png file.

    Raises:
        ImportError: if .pdf or .png is asked for and matplotlib is not installed.
    """
    if path.suffix == ".svg":
        series = [
            Series(one.name, one.points, one.look, one.mark, dashed=one.dashed, deviations=one.deviations)
            for one in curves
        ]
        put(path, complete_svg(title, series, x_label, y_label))
        return
    figure = _matplotlib().Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(color="#dfe3e8", linewidth=0.6)
    for one in curves:
        xs, ys = zip(*one.points, strict=True)
        band = one.mark is None and bool(one.deviations)
        if band:
            low, high = ([y + side * half for y, half in zip(ys, one.deviations, strict=True)] for side in (-1, 1))
            axes.fill_between(xs, low, high, color=COLOURS[one.look % LOOKS], alpha=0.15, linewidth=0)
        axes.errorbar(
            xs,
            ys,
            yerr=None if band else one.deviations or None,
            label=one.name,
            color=COLOURS[one.look % LOOKS],
            marker=None if one.mark is None else MARKS[one.mark % len(MARKS)],
            linestyle="--" if one.dashed else "-",
            markersize=4,
            linewidth=1.4,
            capsize=2,
        )
    axes.legend(frameon=False, fontsize="small")
    # the same numbers give the same file
    figure.savefig(path, dpi=200, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError:
        raise ImportError("figures as .pdf and .png need matplotlib: pip install 'offramp[figures]'") from None
    return figure
