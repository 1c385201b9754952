"""The papers' analyses as figures: rates over exits, relative cost, sorted probabilities, dissimilarity matrices."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from offramp.measure.chart import STYLE, Number
from offramp.study.analyses import RelativeExit
from offramp.study.plots import Curve
from offramp.text import escaped

PANEL, GAP, HEAD = 320, 24, 56
LOW, HIGH = (247, 251, 255), (8, 48, 107)
"""Colours of the dissimilarities 0 and 2."""
GREY = 254
"""The level that represents NaN."""


def over_exits(values: Mapping[str, Sequence[float | None]]) -> list[Curve]:
    """One curve for each run: shares in [0, 1] as percentages over the numbers of the exits, None left out."""
    return [
        Curve(
            name, [(exit, 100 * value) for exit, value in enumerate(run, 1) if value is not None], look=look, mark=look
        )
        for look, (name, run) in enumerate(values.items())
        if any(value is not None for value in run)
    ]


def relative_curves(runs: Mapping[str, Sequence[RelativeExit]]) -> list[Curve]:
    """One curve for each run: relative accuracy over relative cost, both in percent."""
    return [
        Curve(name, [(100 * one.cost, 100 * one.accuracy) for one in exits], look=look, mark=look)
        for look, (name, exits) in enumerate(runs.items())
    ]


def rank_curves(runs: Mapping[str, Sequence[float]], ranks: int = 5) -> list[Curve]:
    """One curve for each run: the mean probability, in percent, of the most probable classes by rank."""
    return [
        Curve(name, [(rank, 100 * value) for rank, value in enumerate(means[:ranks], 1)], look=look, mark=look)
        for look, (name, means) in enumerate(runs.items())
    ]


def matrices(title: str, panels: Mapping[str, Float[ndarray, "N N"]]) -> str:
    """An SVG with dissimilarity matrices side by side, from 0 (light) to 2 (dark); NaN is grey.

    Args:
        panels: matrices by the text above them.
    """
    width = GAP + len(panels) * (PANEL + GAP)
    height = HEAD + PANEL + GAP
    parts = [f"<style>{STYLE}</style>", f'<rect class="paper" width="{width}" height="{height}"/>']
    parts.append(f'<text class="title" x="{GAP}" y="24">{escaped(title)}</text>')
    for place, (name, matrix) in enumerate(panels.items()):
        x: Number = GAP + place * (PANEL + GAP)
        parts.append(f'<text x="{x}" y="{HEAD - 8}">{escaped(name)}</text>')
        parts.append(f'<image x="{x}" y="{HEAD}" width="{PANEL}" height="{PANEL}" href="{_png(matrix)}"/>')
    head = f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    return "\n".join([f'{head}width="{width}" height="{height}" aria-label="{escaped(title)}">', *parts, "</svg>\n"])


def _png(matrix: Float[ndarray, "N N"]) -> str:
    """One byte per entry: 254 shades from 0 to 2, and grey for NaN."""
    shades = np.linspace(LOW, HIGH, GREY).round().astype(np.uint8)
    levels = np.where(np.isnan(matrix), GREY, (np.nan_to_num(matrix) / 2).clip(0, 1) * (GREY - 1)).round()
    picture = Image.fromarray(levels.astype(np.uint8))
    picture.putpalette([*shades.ravel().tolist(), 128, 128, 128])
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
