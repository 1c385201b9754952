"""Line charts as SVG for light and dark backgrounds, as files or within a page."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from offramp.text import escaped

Number = int | float
Polyline = Sequence[tuple[Number, Number]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 76, 20, 16, 56
LOOKS = 6
"""Number of colours, distinguishable with most forms of colour blindness; marks and dashes differ too."""
STYLE = """
svg.chart { --paper: #fff; --ink: #1d2126; --grid: #dfe3e8; --axis: #6a727c }
svg.chart .s0 { color: #0066a8 } svg.chart .s1 { color: #c75300 } svg.chart .s2 { color: #00805d }
svg.chart .s3 { color: #a8488f } svg.chart .s4 { color: #a86d00 } svg.chart .s5 { color: #5b636d }
@media (prefers-color-scheme: dark) {
  svg.chart { --paper: #16181c; --ink: #e6e8eb; --grid: #333840; --axis: #98a1ab }
  svg.chart .s0 { color: #58b2ec } svg.chart .s1 { color: #ff8a3d } svg.chart .s2 { color: #2fc79a }
  svg.chart .s3 { color: #e69fd2 } svg.chart .s4 { color: #f0c040 } svg.chart .s5 { color: #aab2bc }
}
svg.chart text { font: 13px system-ui, sans-serif; fill: var(--ink) }
svg.chart .title { font-size: 15px; font-weight: 600 }
svg.chart .paper { fill: var(--paper) } svg.chart .grid { stroke: var(--grid) } svg.chart .axis { stroke: var(--axis) }
"""
"""CSS of the classes of a chart; a page contains it once."""


class Series(NamedTuple):
    """The points of one curve.

    `look` chooses the colour, `mark` the shape at every point (None: no marks), `joined` whether a line connects them.
    `deviations` are the half lengths of error bars (of a band, if there are no marks), one per point, or empty.
    """

    name: str
    points: Polyline
    look: int = 0
    mark: int | None = 0
    joined: bool = True
    dashed: bool = False
    deviations: Sequence[Number] = ()

    @property
    def corners(self) -> Polyline:
        """Every point, and the ends of its error bar."""
        ends = [
            (x, y + side * deviation) for (x, y), deviation in zip(self.points, self.deviations) for side in (-1, 1)
        ]
        return [*self.points, *ends]


class Frame(NamedTuple):
    """The rectangle that points are placed in, from the first to the last tick of both axes."""

    width: int
    height: int
    top: int
    across: Sequence[Number]
    up: Sequence[Number]

    def place(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Coordinates of a point in the SVG."""
        right = LEFT + (x - self.across[0]) / (self.across[-1] - self.across[0]) * (self.width - LEFT - RIGHT)
        span = self.height - self.top - BOTTOM
        return right, self.height - BOTTOM - (y - self.up[0]) / (self.up[-1] - self.up[0]) * span

    def axes(self, x_label: str, y_label: str) -> list[str]:
        """The grid with its numbers, and the labels of both axes."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        drawn = []
        for value, label in zip(self.across, written(self.across), strict=True):
            x, _ = self.place(value, self.up[0])
            drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{bottom}"/>')
            drawn.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
        for value, label in zip(self.up, written(self.up), strict=True):
            _, y = self.place(self.across[0], value)
            drawn.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        drawn.append(f'<path class="axis" fill="none" d="M{LEFT} {self.top}V{bottom}H{right}"/>')
        middle, along = (LEFT + right) / 2, (self.top + bottom) / 2
        drawn.append(f'<text x="{middle}" y="{self.height - 12}" text-anchor="middle">{escaped(x_label)}</text>')
        turned = f'transform="translate(14 {along}) rotate(-90)"'
        return [*drawn, f'<text {turned} text-anchor="middle">{escaped(y_label)}</text>']


def chart(title: str, lines: Mapping[str, Polyline], x_label: str, y_label: str) -> str:
    """A complete SVG: lines with marked points, the legend above; a single point is only a mark.

    Args:
        lines: (x, y) points by the name in the legend.
    Raises:
        ValueError: if there is no point at all, or one is not finite.
    """
    series = [Series(name, line, place, place) for place, (name, line) in enumerate(lines.items())]
    return complete_svg(title, series, x_label, y_label)


def complete_svg(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """A complete SVG: the series below their legend.

    Raises:
        ValueError: if there is no point at all, or one is not finite.
    """
    legend, top = _legend(series)
    short = title if len(title) <= 76 else f"{title[:75]}…"
    head = [f"<style>{STYLE}</style>", f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>']
    head.append(f'<text class="title" x="{LEFT}" y="24">{escaped(short)}</text>')
    frame = _around(series, (WIDTH, HEIGHT), top)
    return picture(frame, title, [*head, *legend, *frame.axes(x_label, y_label), *drawn(frame, series)], alone=True)


def plot(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    size: tuple[int, int] = (360, 280),
    across: Sequence[Number] | None = None,
    up: Sequence[Number] | None = None,
    under: Callable[[Frame], list[str]] = lambda frame: [],
    about: str = "",
) -> str:
    """A chart for a page that contains `STYLE` and its own legend.

    Args:
        across: ticks of the horizontal axis; default: round numbers around the points.
        up: ticks of the vertical axis.
        under: draws what is below the series.
        about: description for screen readers.
    Raises:
        ValueError: if there is no point at all, or one is not finite.
    """
    frame = _around(series, size, TOP, across, up)
    return picture(frame, title, [*frame.axes(x_label, y_label), *under(frame), *drawn(frame, series)], about)


def picture(frame: Frame, title: str, parts: Sequence[str], about: str = "", *, alone: bool = False) -> str:
    """The SVG element around its parts; with a size if it is a file of its own."""
    sized = f' width="{frame.width}" height="{frame.height}"' if alone else ""
    described = f"<desc>{escaped(about)}</desc>" if about else ""
    return "\n".join(
        [
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}"{sized} '
            f'role="img" aria-label="{escaped(title)}">',
            f"<title>{escaped(title)}</title>{described}",
            *parts,
            "</svg>\n",
        ]
    )


def drawn(frame: Frame, series: Sequence[Series]) -> list[str]:
    """Lines and marks; the numbers of a mark are its tooltip."""
    parts = []
    for line in series:
        places = [frame.place(x, y) for x, y in line.points]
        parts.append(f'<g class="s{line.look % LOOKS}">')
        if line.joined and len(places) > 1:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
            parts.append(f'<polyline points="{way}" fill="none" stroke="currentColor" stroke-width="2"{dashes}/>')
        parts += _deviations(frame, line)
        if line.mark is not None:
            tips = (escaped(f"{line.name}: {x:.5g}, {y:.5g}") for x, y in line.points)
            parts += [mark(where, line.mark, tip) for where, tip in zip(places, tips, strict=True)]
        parts.append("</g>")
    return parts


def _deviations(frame: Frame, line: Series) -> list[str]:
    """Error bars, or a band around a line without marks."""
    bars = list(zip(line.points, line.deviations))
    low, high = ([frame.place(x, y + side * half) for (x, y), half in bars] for side in (-1, 1))
    if line.mark is None and bars:
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*high, *reversed(low)])
        return [f'<polygon points="{way}" fill="currentColor" fill-opacity="0.15"/>']
    return [
        f'<path d="M{x:.1f} {bottom:.1f}V{top:.1f}" stroke="currentColor" stroke-width="1.2"/>'
        for (x, bottom), (_, top) in zip(low, high, strict=True)
    ]


def mark(where: tuple[Number, Number], shape: int, tip: str = "") -> str:
    """One of four shapes, in the colour of its parent element."""
    x, y = where
    inside = f"<title>{tip}</title>" if tip else ""
    if shape % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="currentColor">{inside}</circle>'
    if shape % 4 == 1:
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="currentColor">{inside}</rect>'
    way = "l5 9 h-10 z" if shape % 4 == 2 else "l5 5 l-5 5 l-5 -5 z"
    return f'<path d="M{x:.1f} {y - 5:.1f} {way}" fill="currentColor">{inside}</path>'


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """The names of the series in rows below the title, and the top of the frame."""
    parts, x, y = [], LEFT, 46
    for line in series:
        wide = 34 + round(7.2 * len(line.name))
        if x > LEFT and x + wide > WIDTH - RIGHT:
            x, y = LEFT, y + 20
        parts.append(f'<g class="s{line.look % LOOKS}">{mark((x + 5, y - 4), line.mark or 0)}</g>')
        parts.append(f'<text x="{x + 16}" y="{y}">{escaped(line.name)}</text>')
        x += wide
    return parts, y + 16


def _around(
    series: Sequence[Series],
    size: tuple[int, int],
    top: int,
    across: Sequence[Number] | None = None,
    up: Sequence[Number] | None = None,
) -> Frame:
    points = [where for line in series for where in line.corners]
    if not points or not all(math.isfinite(value) for where in points for value in where):
        raise ValueError("a chart needs points, all of them finite numbers")
    xs, ys = ([where[axis] for where in points] for axis in (0, 1))
    # a third fewer than fit side by side if the numbers are long
    return Frame(*size, top, across or ticks(xs, 8 if size[0] > 500 else 5), up or ticks(ys))


def written(values: Sequence[Number]) -> list[str]:
    """Ticks as text with equal numbers of decimals; very large or small ones in scientific notation."""
    short = [f"{value:g}" for value in values]
    if any("e" in text for text in short):
        return short
    decimals = max(len(text.partition(".")[2]) for text in short)
    return [f"{value:.{decimals}f}" for value in values]


def ticks(values: Sequence[Number], most: int = 8) -> list[float]:
    """Round numbers, at most about `most` steps, whose range contains all values.

    Values that differ by rounding alone (a billionth) count as one, with a margin around it.
    """
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - max(abs(low), 1) * 0.05, high + max(abs(high), 1) * 0.05
    step = 10 ** math.floor(math.log10((high - low) / 5))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * step) <= most)
    first, last = math.floor(low / step), math.ceil(high / step)
    decimals = max(0, 1 - math.floor(math.log10(step)))
    return [float(round(index * step, decimals)) for index in range(first, last + 1)]
