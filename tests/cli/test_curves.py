"""offramp curves: 39 points and a picture, from stored traces."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

Offramp = Callable[..., Any]


def test_both_curves_are_written_and_printed(offramp: Offramp, run: Path) -> None:
    ran = offramp("curves", run, "--json")
    assert ran.status == 0, ran.err
    found = ran.json
    assert len(found["budgeted"]) == 39 and len(found["anytime"]) == 4
    stored = json.loads((run / "curves.json").read_text())
    assert {**stored, "picture": found["picture"]} == found
    picture = ElementTree.fromstring((run / "curves.svg").read_text())
    assert picture.tag.endswith("svg") and Path(found["picture"]) == run / "curves.svg"
    accuracy = offramp("evaluate", run, "--json").json
    assert [point["accuracy"] for point in found["anytime"]] == pytest.approx(accuracy["accuracy"])
    assert [point["cost"] for point in found["anytime"]] == accuracy["macs_cumulative"]
    assert all(sum(point["shares"]) == pytest.approx(1) for point in found["budgeted"])


def test_another_count_of_operations_and_another_folder(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    ran = offramp("curves", run, "--cost", "msdnet_ops", "--out", tmp_path / "new" / "folder")
    assert ran.status == 0, ran.err
    assert "msdnet_ops" in ran.out and {path.name for path in (tmp_path / "new/folder").iterdir()} == {
        "curves.json",
        "curves.svg",
    }


def test_a_run_without_a_calibration_split(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    for name in ("last.safetensors", "config.yaml"):
        text = (run / name).read_bytes()
        (tmp_path / name).write_bytes(text.replace(b"holdout: 0.3", b"holdout: 0"))
    ran = offramp("curves", tmp_path)
    assert ran.status == 1 and "was trained on everything (holdout 0)" in ran.err


def test_a_file_where_the_folder_should_be(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = offramp("curves", run, "--out", tmp_path / "file")
    says = f"offramp: --out {tmp_path / 'file'} is a file: name the folder that the curves are written into\n"
    assert (ran.status, ran.err) == (1, says)
