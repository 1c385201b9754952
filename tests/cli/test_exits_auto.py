"""--exits auto --goal-macs: what was chosen is said and stored, the same command goes on, and compare wants names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from offramp.files import read_yaml

Offramp = Callable[..., Any]


def test_a_run_gets_exits_for_its_goal_and_goes_on(offramp: Offramp, tmp_path: Path) -> None:
    words = ["--width", 4, "--data", "digits", "--method", "joint", "--exits", "auto", "--goal-macs", 0.9]
    words += ["--epochs", 1, "--precision", 32, "--out", tmp_path / "a"]
    ran = offramp("train", *words)
    assert ran.status == 0, ran.err
    said = " ".join(ran.err.split())
    assert "exits for 0.9 of the plain network's operations: byot exits after 1, 2, 3; the first one costs 0." in said
    assert "early exit is at most " in said and " times cheaper with byot; " in said and "with linear" in said
    stored = read_yaml(tmp_path / "a" / "config.yaml")
    assert (stored["branch"], stored["exits-at"], stored["exits"], stored["goal-macs"]) == (
        "byot",
        [1, 2, 3],
        None,
        None,
    )
    again = offramp("train", *words, "--resume")
    assert again.status == 0 and "is finished: 1 epoch" in again.err, again.err


def test_info_says_how_cheap_exits_get(offramp: Offramp) -> None:
    out = " ".join(offramp("info", "--width", 8, "--image-size", 32).out.split())
    assert "early exit is at most " in out and "cheaper with sketch; " in out and "times with byot" in out
    ran = offramp("info", "--width", 8, "--image-size", 32, "--exits", "auto", "--goal-macs", 0.5)
    assert ran.status == 0 and "exits for 0.5 of the plain network's operations: byot exits after" in ran.out, ran.err
    ran = offramp("info", "--width", 8, "--image-size", 32, "--exits", "auto", "--goal-macs", 0.01)
    assert ran.status == 2 and "--goal-macs 0.01: no exit of resnet18 is that cheap: early exit is at most" in ran.err
    assert offramp("info", "--exits", "auto").status == 2


def test_compare_wants_the_places_by_name(offramp: Offramp, tmp_path: Path) -> None:
    words = ("--methods", "joint", "--exits", "auto", "--goal-macs", 0.5, "--out", tmp_path / "c")
    ran = offramp("compare", *words)
    assert ran.status == 2 and "--exits auto is for train and info: name the places" in ran.err
