"""Lines of accuracy against cost as one SVG picture that stands alone, readable in light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Line = Sequence[tuple[int | float, int | float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 64, 20, 44, 56
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Okabe and Ito's, told apart by most colour-blind people; marks differ too."""
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-size: 15px; font-weight: 600 }
.paper { fill: #fff } .grid { stroke: #ddd } .axis { stroke: #666 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .paper { fill: #16181c } .grid { stroke: #333 } .axis { stroke: #999 }
}
"""


def chart(title: str, lines: Mapping[str, Line], x_label: str, y_label: str) -> str:
    """An SVG text of lines with their points marked; a line of one point is a mark alone.

    Args:
        lines: (x, y) points by the name in the legend.
    Raises:
        ValueError: if there is no point at all, or one is not finite.
    """
    points = [there for line in lines.values() for there in line]
    if not points or not all(math.isfinite(value) for there in points for value in there):
        raise ValueError("a chart needs points, all of them finite numbers")
    across, up = (_ticks([there[axis] for there in points]) for axis in (0, 1))

    def place(there: tuple[int | float, int | float]) -> tuple[int | float, int | float]:
        x = LEFT + (there[0] - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (there[1] - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)
        return x, y

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
    ]
    for value in across:
        x, _ = place((value, up[0]))
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in up:
        _, y = place((across[0], value))
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    drawn.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>'
    )
    drawn.append(
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for index, (name, line) in enumerate(lines.items()):
        drawn += _line(name, [place(there) for there in line], index, len(lines))
    return "\n".join([*drawn, "</svg>\n"])


def _line(name: str, places: list[tuple[int | float, int | float]], index: int, of: int) -> list[str]:
    """One line, its marks, and its entry in the legend at the lower right."""
    colour = COLOURS[index % len(COLOURS)]
    y = HEIGHT - BOTTOM - 12 - 20 * (of - 1 - index)
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = [f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>'] if len(places) > 1 else []
    drawn += [_mark(there, colour, index) for there in places]
    drawn.append(_mark((WIDTH - RIGHT - 190, y - 4), colour, index))
    drawn.append(f'<text x="{WIDTH - RIGHT - 178}" y="{y}">{escape(name)}</text>')
    return drawn


def _mark(there: tuple[int | float, int | float], colour: str, index: int) -> str:
    x, y = there
    if index % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    if index % 3 == 1:
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 5:.1f} l5 9 h-10 z" fill="{colour}"/>'


def _ticks(values: Sequence[float]) -> list[float]:
    """Five to eleven round numbers that hold all values between the first and the last."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - max(abs(low), 1) * 0.05, high + max(abs(high), 1) * 0.05
    step = 10 ** math.floor(math.log10((high - low) / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 8)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(round(index * step, 12)) for index in range(first, last + 1)]
