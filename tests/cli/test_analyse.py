"""offramp analyse: tables, JSON and figures of a run, and one sentence where it cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Offramp = Callable[..., Any]


def test_one_run(offramp: Offramp, run: Path) -> None:
    ran = offramp("analyse", run)
    assert ran.status == 0, ran.err
    assert (
        "on test, computed on cpu" in ran.out
        and "wrong later" in ran.out
        and "agreement with the final exit" in ran.out
    )
    folder = run / "analysis"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "analysis.json",
        f"dissimilarity-{run.name}.svg",
        "go-wrong.svg",
        "relative-cost.svg",
        "probabilities.svg",
    }
    (stored,) = json.loads((folder / "analysis.json").read_text())["runs"]
    for picture in folder.glob("*.svg"):
        assert stored["made_from"]["weights"] in picture.read_text().splitlines()[-1]
    said = offramp("evaluate", run, "--json").json
    assert [exit["accuracy"] for exit in stored["exits"]] == pytest.approx(said["accuracy"])
    assert [exit["calibration_error"] for exit in stored["exits"]] == pytest.approx(said["calibration_error"])
    for exit in stored["exits"][:-1]:
        assert sum(exit["agreement"].values()) == stored["samples"]
        assert exit["go_wrong"]["correct"] == round(exit["accuracy"] * stored["samples"])
    assert stored["exits"][-1]["relative_cost"] == stored["exits"][-1]["relative_accuracy"] == 1


def test_without_matrices_and_with_milliseconds(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    words = ("--dissimilarity", "0", "--batch-size", "2", "--top", "3", "--out", tmp_path / "out", "--json")
    ran = offramp("analyse", run, *words)
    assert ran.status == 0, ran.err
    (result,) = ran.json["runs"]
    softmax = [exit["softmax"] for exit in result["exits"]]
    assert all(each["top"] == 3 and 0 < each["entropy_top"] < each["entropy"] for each in softmax)
    assert result["exits"][-1]["relative_ms"] == 1 and result["exits"][0]["ms"] > 0
    assert not list((tmp_path / "out").glob("dissimilarity*"))


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "name at least one run"),
        (("RUN", "other"), "an analysis of 2 runs needs --out DIR"),
        (("RUN", "RUN", "--out", "out"), "is named twice: name every run once"),
        (("RUN", "--top", "0"), "--top must be at least 1, got 0"),
        (("RUN", "--dissimilarity", "-1"), "--dissimilarity must be at least 0, got -1"),
        (("RUN", "--out", "missing/folder"), "there is no folder missing"),
    ],
)
def test_refused(offramp: Offramp, run: Path, words: tuple[str, ...], message: str) -> None:
    ran = offramp("analyse", *(str(run) if word == "RUN" else word for word in words))
    assert ran.status in (1, 2) and message in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
