"""offramp curves: 39 points and a picture, from stored traces."""

import csv
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from offramp import digests
from offramp.train.checkpoint import load_weights, save_weights
from offramp.train.run_dir import read_config
from offramp.trust import remember

Offramp = Callable[..., Any]


def test_both_curves_are_written_and_printed(offramp: Offramp, run: Path) -> None:
    ran = offramp("curves", run, "--json")
    assert ran.status == 0, ran.err
    result = ran.json
    assert len(result["budgeted"]) == 39 and len(result["anytime"]) == 4
    stored = json.loads((run / "curves.json").read_text())
    assert stored.pop("digest") == digests.of_bytes(json.dumps(stored).encode())
    assert {**stored, "picture": result["picture"], "files": []} == result and result["refused"] is None
    made_from = result["made_from"]
    assert made_from["weights"] == load_weights(run / "last.safetensors")[1]["digest"]
    assert made_from["cal"] != made_from["test"]
    text = (run / "curves.svg").read_text()
    assert text == digests.signed(text.rpartition("<!--")[0], {str(run): made_from})
    picture = ElementTree.fromstring(text)
    assert picture.tag.endswith("svg") and Path(result["picture"]) == run / "curves.svg"
    accuracy = offramp("evaluate", run, "--json").json
    assert [point["accuracy"] for point in result["anytime"]] == pytest.approx(accuracy["accuracy"])
    assert [point["cost"] for point in result["anytime"]] == accuracy["macs_cumulative"]
    assert [point["top5"] for point in result["anytime"]] == pytest.approx(accuracy["top5"])
    assert all(point["accuracy"] <= point["top5"] <= 1 for point in result["budgeted"])
    assert all(sum(point["shares"]) == pytest.approx(1) for point in result["budgeted"])


def test_another_count_of_operations_and_another_folder(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    ran = offramp("curves", run, "--cost", "msdnet_ops", "--out", tmp_path / "new" / "folder")
    assert ran.status == 0, ran.err
    assert "msdnet_ops" in ran.out and {path.name for path in (tmp_path / "new/folder").iterdir()} == {
        "curves.json",
        "curves.svg",
    }


def test_a_run_without_a_calibration_split_has_the_anytime_curve(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    for name in ("last.safetensors", "config.yaml"):
        text = (run / name).read_bytes()
        (tmp_path / name).write_bytes(text.replace(b"holdout: 0.3", b"holdout: 0"))
    remember(read_config(tmp_path))
    ran = offramp("curves", tmp_path)
    says = f"no budgeted batches: {tmp_path} was trained on everything (holdout 0), so there are no images to fit"
    assert ran.status == 0 and says in ran.out and " samples, on cpu" in ran.out, ran.err
    result = json.loads((tmp_path / "curves.json").read_text())
    assert len(result["anytime"]) == 4 and result["budgeted"] == [] and says in result["refused"]
    assert "anytime" in (tmp_path / "curves.svg").read_text()


@pytest.fixture
def seeds(run: Path, tmp_path: Path, reconfigure: Callable[[Path, str, str], None]) -> list[Path]:
    """Runs that differ in their seed, and (so that there is a deviation) in their weights."""
    other = Path(shutil.copytree(run, tmp_path / "runs" / "seed-1"))
    reconfigure(other, "seed: 0", "seed: 1")
    tensors, about = load_weights(other / "last.safetensors")
    save_weights(other / "last.safetensors", {name: tensor.flip(0) for name, tensor in tensors.items()}, about)
    return [Path(shutil.copytree(run, tmp_path / "runs" / "seed-0")), other]


def test_several_seeds_are_one_curve_with_deviations(offramp: Offramp, seeds: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / f"x.{ending}" for ending in ("csv", "tex", "svg", "pdf", "png")]
    words = ["--out", tmp_path / "both", "--write", ",".join(map(str, files)), "--metric", "top5"]
    ran = offramp("curves", *seeds, *words, "--json")
    assert ran.status == 0, ran.err
    (group,) = ran.json["groups"]
    assert group["name"] == "muse" and group["seeds"] == [0, 1] and ran.json["files"] == list(map(str, files))
    for exit, point in enumerate(group["anytime"]):
        values = [one["anytime"][exit]["top5"] for one in ran.json["runs"]]
        assert point["top5"] == pytest.approx(statistics.mean(values))
        assert point["top5_deviation"] == pytest.approx(statistics.stdev(values))
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 4 + 39 and float(rows[1]["top5"]) == pytest.approx(group["anytime"][0]["top5"])
    assert {row["device"] for row in rows} == {"cpu"}
    assert "on test, on cpu" in files[1].read_text() and "test, on cpu" in files[2].read_text()
    assert "\\toprule" in files[1].read_text() and "top-5 accuracy" in files[1].read_text()
    assert files[3].read_bytes()[:5] == b"%PDF-" and files[4].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    ElementTree.fromstring(files[2].read_text())
    shown = offramp("curves", *seeds, "--out", tmp_path / "both")
    assert shown.status == 0 and "mean ± standard deviation over seeds" in shown.out and " ± " in shown.out


def test_a_comparison_stands_for_its_runs(offramp: Offramp, seeds: list[Path]) -> None:
    folder = seeds[0].parent
    (folder / "comparison.yaml").write_text("net: resnet18\n")
    ran = offramp("curves", folder, "--json")
    assert ran.status == 0, ran.err
    assert [one["run"] for one in ran.json["runs"]] == [str(run) for run in seeds]
    assert (folder / "curves.svg").is_file()
    for run in seeds:
        (run / "result.json").unlink()
    ran = offramp("curves", folder)
    assert ran.status == 1 and f"{folder} is a comparison without a finished run yet" in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name at least one run: offramp curves RUN..."),
        (["{run}", "{run}/.."], "curves of 2 runs need --out DIR"),
        (["{run}", "{run}/.", "--out", "{run}"], "{run} is named twice: name every run once"),
        (["{run}", "--write", "x.gif"], "--write takes files ending in .csv, .tex, .svg, .pdf or .png, got x.gif"),
        (["{run}", "--write", "{run}/no/x.csv"], "--write {run}/no/x.csv: there is no folder {run}/no; make it first"),
    ],
)
def test_what_cannot_be_drawn(offramp: Offramp, run: Path, words: list[str], says: str) -> None:
    ran = offramp("curves", *(word.format(run=run) for word in words))
    assert ran.status in (1, 2) and says.format(run=run) in ran.err and ran.err.count("\n") == 1
    assert not (run / "curves.json").exists()


def test_pdf_without_matplotlib(offramp: Offramp, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = offramp("curves", run, "--write", tmp_path / "x.pdf")
    says = "offramp: figures as .pdf and .png need matplotlib: pip install 'offramp[figures]'\n"
    assert (ran.status, ran.err) == (1, says) and not (run / "curves.json").exists()
    assert offramp("curves", run, "--write", tmp_path / "x.svg").status == 0


def test_a_file_where_the_folder_should_be(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = offramp("curves", run, "--out", tmp_path / "file")
    says = f"offramp: --out {tmp_path / 'file'} is a file: name the folder that the curves are written into\n"
    assert (ran.status, ran.err) == (1, says)
