"""Charts: well-formed SVG that holds every point inside its frame."""

import re
from xml.etree import ElementTree

import pytest

from offramp.measure.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, chart, plot, ticks, written

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


@pytest.mark.parametrize("pair", [(0.3, 0.1 + 0.2), (1e15, 1e15 + 1), (1e-13, 3e-13)])
def test_values_that_differ_by_rounding_are_one_and_tiny_ones_are_not(pair: tuple[float, float]) -> None:
    points = list(enumerate(pair))
    drawn = chart("t", {"a": points}, "x", "y")
    places = [float(y) for _, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)][1:]
    assert all(TOP <= y <= HEIGHT - BOTTOM for y in places)
    assert (abs(places[0] - places[1]) > 100) == (pair[1] == 3e-13)


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1.0, float("nan"))]}])
def test_nothing_to_draw(lines: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(ValueError, match="a chart needs points, all of them finite numbers"):
        chart("t", lines, "x", "y")


def test_the_legend_stands_above_the_frame_and_breaks_into_rows() -> None:
    lines = {f"a rather long name of a line, {number}": [(1.0, float(number))] for number in range(9)}
    root = ElementTree.fromstring(chart("t", lines, "x", "y"))
    places = {text.text: text for text in root.iter(f"{SVG}text") if text.text in lines}
    assert set(places) == set(lines)
    rows = {float(text.attrib["y"]) for text in places.values()}
    assert len(rows) > 1 and all(float(text.attrib["x"]) < WIDTH - RIGHT for text in places.values())
    assert max(rows) < min(float(mark.attrib["y1"]) for mark in root.iter(f"{SVG}line"))


def test_a_long_title_is_cut_and_said_whole() -> None:
    title = "x" * 200
    root = ElementTree.fromstring(chart(title, {"a": [(1, 1)]}, "x", "y"))
    assert root.attrib["aria-label"] == title
    assert max(len(text.text or "") for text in root.iter(f"{SVG}text")) == 76


def test_a_plot_for_a_page_has_no_style_of_its_own_and_tells_every_number() -> None:
    series = [Series("a", [(1, 2), (3, 4)], dashed=True), Series("b", [(1, 4)], 7, None)]
    drawn = plot("t", series, "x", "y", about="what is seen", up=[0, 5])
    root = ElementTree.fromstring(drawn)
    assert "<style" not in drawn and root.attrib["role"] == "img" and "width" not in root.attrib
    assert root.find(f"{SVG}desc").text == "what is seen"  # type: ignore[union-attr]
    assert [title.text for title in root.iter(f"{SVG}title")] == ["t", "a: 1, 2", "a: 3, 4"]
    assert "stroke-dasharray" in drawn and 'class="s1"' in drawn  # colours begin again


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.05, 0.1], ["0.00", "0.05", "0.10"]),
        ([1.0, 2.0], ["1", "2"]),
        ([0.0, 1e-7], ["0", "1e-07"]),
    ],
)
def test_ticks_have_the_same_decimals(values: list[float], wanted: list[str]) -> None:
    assert written(values) == wanted


@pytest.mark.parametrize("values", [[0.1, 0.2], [57.03, 60.84], [1, 1], [0.0, 1e9], [-3.5, 7.25], [0, 0]])
def test_ticks_hold_all_values_and_are_few(values: list[float]) -> None:
    result = ticks(values, 5)
    assert result[0] <= min(values) and max(values) <= result[-1] and 2 <= len(result) <= 8
