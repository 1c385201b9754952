"""Charts: well-formed SVG that holds every point inside its frame."""

import re
from xml.etree import ElementTree

import pytest

from offramp.measure.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart

SVG = "{http://www.w3.org/2000/svg}"


def test_every_point_is_marked_inside_the_frame_and_the_legend_names_the_lines() -> None:
    lines = {"a & b": [(1.0, 50.0), (2.0, 70.5), (4.0, 71.0)], "one": [(3.0, 60.0)]}
    root = ElementTree.fromstring(chart("title <x>", lines, "cost", "accuracy"))
    assert {"title <x>", "a & b", "one", "cost", "accuracy"} <= {text.text for text in root.iter(f"{SVG}text")}
    (way,) = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, pair.split(","))) for pair in way.attrib["points"].split()]
    assert len(places) == 3
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in places)
    assert places[0][0] < places[1][0] < places[2][0] and places[0][1] > places[1][1] > places[2][1]
    assert len(list(root.iter(f"{SVG}circle"))) == 3 + 1  # and the legend's


def test_one_place_alone_has_room_around_it() -> None:
    drawn = chart("t", {"a": [(0.0, 80.0)]}, "x", "y")
    (x, y) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)[0]
    assert LEFT < float(x) < WIDTH - RIGHT and TOP < float(y) < HEIGHT - BOTTOM


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1.0, float("nan"))]}])
def test_nothing_to_draw(lines: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(ValueError, match="a chart needs points, all of them finite numbers"):
        chart("t", lines, "x", "y")
