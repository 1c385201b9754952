"""offramp report: one file of one or several runs, and one clear sentence where there is none to make."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import NET
from PIL import Image

from offramp.runs.report import names
from offramp.train.checkpoint import load_weights, save_weights

Offramp = Callable[..., Any]
VARYING = ('id="date"', "command", "blake2b")
"""Words of the lines of a page that say when and how it was made; its digest depends on them."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    """A run on images of our own, with nothing held out; they lie beside it."""
    home = tmp_path_factory.mktemp("photos")
    draw = np.random.RandomState(0)
    for name in ("<b>red</b>".replace("/", "_"), "blue & green"):
        (home / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.randint(0, 256, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(home / "images" / name / f"{number}.png")
    words = f"--method joint --data folder:{home / 'images'} --image-size 16"
    how = "--holdout 0 --batch-size 8 --epochs 1 --precision 32 --json"
    succeed("train", *NET, *words.split(), *how.split(), "--out", home / "run")
    return home / "run"


def test_a_run_before_and_after_calibration(offramp: Offramp, run: Path) -> None:
    ran = offramp("report", run)
    assert ran.status == 0, ran.err
    text = (run / "report.html").read_text()
    assert ran.out.startswith("on test, on cpu\n")
    assert "no policy yet" in text and str(run / "report.html") in ran.out.replace("\n", "")
    assert offramp("calibrate", run, "--macs", "0.8", "--json").status == 0
    ran = offramp("report", run, "--images", "2", "--batch-size", "4", "--json")
    assert ran.status == 0, ran.err
    (result,) = ran.json["runs"]
    text = (run / "report.html").read_text()
    assert (
        text.splitlines()[-1].startswith("<!-- made from {")
        and load_weights(run / "last.safetensors")[1]["digest"] in text
    )
    said = offramp("evaluate", run, "--json").json
    assert result["accuracy"] == said["accuracy"] and result["calibration_error"] == said["calibration_error"]
    assert result["policy"]["shares"] == pytest.approx(said["adaptive"]["shares"])
    assert result["policy"]["accuracy"] == pytest.approx(said["adaptive"]["accuracy"])
    assert result["policy"]["cost"] == pytest.approx(said["adaptive"]["macs"])
    assert len(result["budgeted"]) == 39 and len(result["ms"]["stages"]) == 4 and result["ms"]["batch_size"] == 4
    text = (run / "report.html").read_text()
    assert "no policy yet" not in text and ran.json["bytes"] == len(text.encode())
    assert "provenance of the policy" in text and "fitted on other weights" not in text


def test_the_weights_that_were_asked_for(offramp: Offramp, run: Path) -> None:
    """Those of the last epoch are spoilt here, so that nothing of theirs passes for the others'."""
    tensors, about = load_weights(run / "last.safetensors")
    save_weights(run / "last.safetensors", {name: 0 * tensor for name, tensor in tensors.items()}, about)
    last, best = (
        offramp("report", run, "--images", 0, "--weights", weights, "--json").json["runs"][0]
        for weights in ("last", "best")
    )
    said = offramp("evaluate", run, "--weights", "best", "--json").json
    assert (best["weights"], best["epoch"], best["accuracy"]) == ("best", said["epoch"], said["accuracy"])
    assert best["accuracy"] != last["accuracy"] and best["budgeted"] != last["budgeted"]


def test_several_runs_in_one_page_and_the_same_again(offramp: Offramp, run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    pages = []
    for _ in range(2):
        ran = offramp("report", run, photos, "--out", out)
        assert ran.status == 0, ran.err
        lines = out.read_text().splitlines()
        pages.append([line for line in lines if not any(word in line for word in VARYING)])
    assert pages[0] == pages[1]
    text = out.read_text()
    assert "These runs are on different data" in text and "trained with <code>holdout 0</code>" in text
    assert "&lt;b&gt;red" in text and "blue &amp; green" in text
    assert [path.name for path in tmp_path.iterdir()] == ["both.html"]


def test_data_that_are_gone(offramp: Offramp, photos: Path, tmp_path: Path) -> None:
    assert offramp("report", photos, "--out", tmp_path / "a.html").status == 0  # the trace is kept from here on
    images = photos.parent / "images"
    hidden = images.rename(photos.parent / "elsewhere")
    try:
        ran = offramp("report", photos, "--out", tmp_path / "b.html")
        assert ran.status == 1 and f"{images} does not exist" in ran.err and ran.err.count("\n") == 1
        assert not (tmp_path / "b.html").exists()
        assert offramp("report", photos, "--images", "0", "--out", tmp_path / "b.html").status == 0
        assert "<img" not in (tmp_path / "b.html").read_text()
    finally:
        hidden.rename(images)


def test_a_comparison_stands_for_its_runs(
    offramp: Offramp, run: Path, tmp_path: Path, reconfigure: Callable[..., None]
) -> None:
    folder = tmp_path / "compare"
    for seed in (0, 1):
        copy = Path(shutil.copytree(run, folder / f"muse-seed-{seed}"))
        reconfigure(copy, "seed: 0", f"seed: {seed}")
    (folder / "comparison.yaml").write_text("net: resnet18\n")
    ran = offramp("report", folder, "--images", 0, "--json")
    assert ran.status == 0 and ran.json["report"] == str(folder / "report.html"), ran.err
    (group,) = ran.json["groups"]
    assert group["curves"]["seeds"] == [0, 1] and group["curves"]["name"] == "muse, 2 seeds"
    assert [point["deviation"] for point in group["curves"]["anytime"]] == [0] * 4, "the same weights"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name at least one run, as in `offramp report RUN`"),
        (["{run}", "{run}/."], "is named twice: name every run once"),
        (["{run}", "{other}"], "a report of 2 runs needs --out FILE"),
        (["{other}"], "{other} is not a run: it has no config.yaml"),
        (["{run}", "--out", "{other}"], "--out {other} is a folder: name a file in it, such as {other}/report.html"),
        (["{run}", "--out", "{other}/no/a.html"], "cannot be written: there is no folder {other}/no; make it first"),
        (["{run}", "--images", "-1"], "--images must be 0 or more, got -1"),
        (["{run}", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_reported(offramp: Offramp, run: Path, tmp_path: Path, words: list[str], says: str) -> None:
    places = {"run": str(run), "other": str(tmp_path)}
    ran = offramp("report", *(word.format(**places) for word in words))
    assert (
        ran.status == (2 if "must be" in says else 1) and says.format(**places) in ran.err and ran.err.count("\n") == 1
    )


@pytest.mark.parametrize("line", ['{"kind": "step", "st', "[1, 2]", '{"no": "kind"}', '{"kind": "epoch"}'])
def test_a_damaged_record(offramp: Offramp, run: Path, tmp_path: Path, line: str) -> None:
    for name in ("last.safetensors", "config.yaml"):
        shutil.copy(run / name, tmp_path / name)
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    ran = offramp("report", tmp_path)
    assert ran.status == 1 and f"{tmp_path / 'metrics.jsonl'}, line 1, is damaged: " in ran.err


def test_a_run_that_lost_its_record_is_still_reported(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    for name in ("last.safetensors", "config.yaml"):
        shutil.copy(run / name, tmp_path / name)
    ran = offramp("report", tmp_path, "--json")
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["runs"][0]["policy"] is None
    assert "Training is not finished" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        (["runs/a"], ["a"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["x/run", "y/run", "y/other"], ["x/run", "y/run", "y/other"]),
    ],
)
def test_names_are_as_short_as_they_can_be(runs: list[str], wanted: list[str]) -> None:
    assert names([Path(run) for run in runs]) == wanted
