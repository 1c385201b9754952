"""The figures of a report: every number has its place, legends name what is drawn, nothing recorded draws nothing."""

from typing import Any
from xml.etree import ElementTree

import pytest

from offramp.measure.accuracy import Bins
from offramp.study import figures

SVG = "{http://www.w3.org/2000/svg}"
POINT = {"cost": 2e6, "accuracy": 0.5}


def tips(svg: str) -> list[str]:
    """What pointing at the marks says, and whether the picture is well-formed."""
    return [title.text or "" for title in ElementTree.fromstring(svg).iter(f"{SVG}title")][1:]


def run(**more: Any) -> dict[str, Any]:
    anytime = [{"cost": 1e6, "accuracy": 0.4}, {"cost": 3e6, "accuracy": 0.6}]
    return {"anytime": anytime, "budgeted": [POINT], "plain": POINT, "policy": None, **more}


def test_accuracy_against_cost_holds_all_runs() -> None:
    built = figures.against_cost({"a & <b>": run(), "other": run(policy={**POINT, "accuracy": 0.55}, budgeted=[])})
    assert [name for _, _, name in built.legend] == ["a & <b>", "other"]
    assert "a & <b>, anytime: 3, 60" in tips(built.svg) and "other, its policy: 2, 55" in tips(built.svg)
    assert not any("a & <b>, its policy" in tip for tip in tips(built.svg))
    assert "mean multiply-adds per image, M" in built.svg


def test_shares_over_budgets_fill_the_picture() -> None:
    points = [{"cost": 2.0, "shares": [0.25, 0.75]}, {"cost": 1.0, "shares": [1.0, 0.0]}]
    built = figures.over_budgets(points)
    first, final = ElementTree.fromstring(built.svg).iter(f"{SVG}polygon")
    heights = [float(pair.split(",")[1]) for pair in final.attrib["points"].split()[:2]]
    assert heights == [16.0, 16.0]  # the last exit reaches the top everywhere
    lower = [float(pair.split(",")[0]) for pair in first.attrib["points"].split()[:2]]
    assert lower[0] < lower[1]  # from the least to the largest budget


def test_one_budget_alone_can_be_drawn() -> None:
    assert "<polygon" in figures.over_budgets([{"cost": 5.0, "shares": [0.5, 0.5]}]).svg


def test_a_reliability_diagram_has_a_column_where_there_are_images() -> None:
    built = figures.diagram(Bins((0, 4, 1), (0.0, 0.5, 0.9), (0.0, 0.25, 1.0)), "exit 1")
    assert len(list(ElementTree.fromstring(built.svg).iter(f"{SVG}rect"))) == 2
    assert "4 images between 0.33 and 0.67, 25.0 % right" in tips(built.svg)
    assert "calibration error 22.00 points" in built.svg


@pytest.mark.parametrize(("place", "count", "wanted"), [(0, 4, 0.2), (3, 4, 1.0), (0, 1, 0.2)])
def test_shades_grow(place: int, count: int, wanted: float) -> None:
    assert figures.shade(place, count) == pytest.approx(wanted)


def test_a_bar_is_as_wide_as_its_shares() -> None:
    root = ElementTree.fromstring(figures.bar([0.25, 0.75], 'say "so"'))
    assert [part.attrib["width"] for part in root.iter("rect")] == ["25.00", "75.00"]
    assert root.attrib["aria-label"] == 'say "so"'


def epoch(number: int, val: list[float] | None, **train: float | None) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number, "val_accuracy": val, "train": train}


def test_training_draws_val_and_the_terms() -> None:
    accuracy, loss = figures.training([epoch(0, [0.5, 0.6], loss=3.0, ce=1.0, kl=2.0), epoch(1, [0.7, 0.8], loss=2.0)])
    assert [name for *_, name in accuracy.legend] == ["exit 1", "final"]
    assert accuracy.rows == (("1", "50", "60"), ("2", "70", "80"))
    assert [name for *_, name in loss.legend] == ["loss", "ce", "kl"]
    assert loss.rows == (("1", "3", "1", "2"), ("2", "2", "–", "–"))


def test_training_without_val_and_with_one_term() -> None:
    (loss,) = figures.training([epoch(0, None, loss=3.0, ce=3.0), epoch(1, None, loss=None, ce=None)])
    assert [name for *_, name in loss.legend] == ["ce"]
    assert loss.rows == (("1", "3"), ("2", "–"))


def test_nothing_recorded_draws_nothing() -> None:
    assert figures.training([]) == [] and figures.learned([], 4) == []
    assert figures.learned([{"kind": "step", "step": 0, "terms": {}, "loss": 1.0}], 4) == []


@pytest.mark.parametrize(
    ("length", "titles", "lines"),
    [
        (6, ["exit 1", "exit 2", "final"], [["labels", "exit 2", "final"], ["labels", "final"], ["labels"]]),
        (5, ["exit 1", "exit 2", "final"], [["labels", "final"], ["labels", "final"], ["labels"]]),
        (3, ["steps"], [["exit 1", "exit 2", "final"]]),
        (7, ["steps"], [list("1234567")]),
    ],
)
def test_learned_weights_are_drawn_by_who_learns(length: int, titles: list[str], lines: list[list[str]]) -> None:
    history = [
        {"kind": "step", "step": step, "weights": [step / 10 + place for place in range(length)]} for step in (0, 1)
    ]
    built = figures.learned(history, 3)
    assert all(title in figure.title for title, figure in zip(titles, built, strict=True))
    assert [[name for *_, name in figure.legend] for figure in built] == lines
    assert built[0].rows[1][:2] == ("1", "0.1")


def test_long_histories_are_thinned_to_their_end() -> None:
    history = [{"kind": "step", "step": step, "averages": [1.0]} for step in range(1001)]
    (built,) = figures.learned(history, 1)
    assert len(built.rows) <= figures.POINTS and built.rows[-1][0] == "1000"


@pytest.mark.parametrize("epochs", [1, 2, 3, 15, 200])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    (built,) = figures.training([epoch(number, None, loss=3.0, ce=1.0, kl=2.0) for number in range(epochs)])
    below = [
        text.text for text in ElementTree.fromstring(built.svg).iter(f"{SVG}text") if text.attrib.get("y") == "242"
    ]
    assert 2 <= len(below) <= 8 and all(float(tick or "x").is_integer() for tick in below)
