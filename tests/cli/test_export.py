"""offramp export: a calibrated run becomes a verified folder, and what is missing for that is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.bundle.read import open_bundle
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import load, save
from offramp.runs.export import Export, _int8_drop

Offramp = Callable[..., Any]


@pytest.fixture
def run(run: Path) -> Path:
    """A run of which two of the four exits are on."""
    save(ExitPolicy(thresholds=(0.5, 0.15, 0.5, 0.5), enabled=(False, True, False, True)), run / "policy.json")
    return run


def test_a_run_becomes_a_bundle(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "b"
    ran = offramp("export", run, "--out", out, "--json")
    assert ran.status == 0, ran.err
    bundle, result = open_bundle(out), json.loads((out / "manifest.json").read_text())
    assert all(ran.json[key] == result[key] for key in ("verified", "measured", "provenance"))
    assert ran.json["segments"] == ["segment-1.onnx", "segment-2.onnx"]
    assert ran.json["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert result["verified"]["images"] == {"test": 359, "cal": 217, "val": 217, "train": 207}
    said = str(Export(**ran.json))
    assert f"2 segments and the policy, {ran.json['bytes'] / 1e6:.2f} MB" in said
    assert "verified on 1,000 images: same exits" in said and "on 359 test images: accuracy" in said
    evaluated = offramp("evaluate", run, "--json").json["adaptive"]
    assert result["measured"]["shares"] == evaluated["shares"]
    assert result["measured"]["accuracy"] == pytest.approx(evaluated["accuracy"])
    assert result["measured"]["macs"] == pytest.approx(evaluated["macs"])
    assert result["measured"]["plain_accuracy"] == pytest.approx(evaluated["plain"]["accuracy"])
    assert bundle.policy == load(run / "policy.json")
    about = bundle.manifest.provenance
    assert (
        about["config"]["net"] == "python:cli_nets:tiny" and about["weights"] == "last" and about["versions"]["torch"]
    )
    again = offramp("export", run, "--out", out)
    assert again.status == 1 and "already exists and is not an empty folder; choose another --out" in again.err


def test_a_run_becomes_a_bundle_in_int8(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    ran = offramp("export", run, "--out", out, "--int8", "--int8-drop", "5%")
    assert ran.status == 0, ran.err
    about = json.loads((out / "manifest.json").read_text())["quantised"]
    assert about["exits"] == [1, 3] and about["most_drop"] == 0.05
    pairs = zip(about["accuracy"]["float32"], about["accuracy"]["int8"], strict=True)
    (second, final) = [f"{100 * before:.2f} -> {100 * after:.2f}" for before, after in pairs]
    text = " ".join(ran.out.split())
    assert f"on 217 images of cal, float32 -> int8: exit 2 {second} exit 4 {final} plain" in text
    assert all(len(line) <= 80 for line in ran.out.partition("int8:")[2].splitlines())
    slower = [size for size in ("1", "64") if about["ms"]["int8"][size] > about["ms"]["float32"][size]]
    assert (f"int8 is slower than float32 here at batch {' and '.join(slower)}" in text) is bool(slower)
    predicted = offramp("predict", out, run / "test.png", "--json")
    assert predicted.status == 1 and "test.png" in predicted.err + predicted.out
    timed = offramp("bench", out, "--runtimes", "onnx", "--batch", 2, "--seconds", 0.1, "--json")
    assert timed.status == 0 and timed.json["kind"] == "bundle", timed.err


def test_what_int8_may_lose(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    assert _int8_drop(True, None) == 0.005 and _int8_drop(True, 0.02) == 0.02 and _int8_drop(False, None) is None
    for words, reason in (
        (("--int8-drop", "1%"), "--int8-drop goes with --int8, which is missing"),
        (("--int8", "--int8-drop", "0.01"), "--int8-drop 0.01 is ambiguous: write 0.01% or 1%"),
        (
            ("--int8", "--int8-drop", "100%"),
            "--int8-drop takes percentage points such as 0.5 or 0.5%, from 0 to below 100, got '100%'",
        ),
    ):
        ran = offramp("export", run, "--out", tmp_path / "b", *words)
        assert ran.status == 2 and reason in " ".join(ran.err.split()), ran.err


def test_a_run_without_a_policy(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    (run / "policy.json").unlink()
    ran = offramp("export", run, "--out", tmp_path / "b")
    assert ran.status == 1 and "has no policy yet: fit one with `offramp calibrate" in ran.err
    assert not (tmp_path / "b").exists()


def test_too_few_images_and_no_run(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    ran = offramp("export", run, "--out", tmp_path / "b", "--images", 999)
    assert ran.status == 2 and "--images must be at least 1000, got 999" in ran.err
    ran = offramp("export", run.parent, "--out", tmp_path / "b")
    assert ran.status == 1 and "is not a run: it contains runs, name one of them" in ran.err
