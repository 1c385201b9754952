"""offramp evaluate BUNDLE: what a bundle does on labelled images, as it runs; what is wrong with them is named."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import offramp
from offramp.bundle.manifest import render
from offramp.bundle.read import open_bundle, read_manifest
from offramp.data.load import load
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import save

Offramp = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    """A bundle of which two of the four exits are on; nobody may change its files."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("bundle") / "run"))
    save(ExitPolicy(thresholds=(0.5, 0.15, 0.5, 0.5), enabled=(False, True, False, True)), run / "policy.json")
    succeed("export", run, "--out", run.parent / "b", "--json")
    return run.parent / "b"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of three digits as files in folders of their classes, not divided."""
    root, digits = tmp_path_factory.mktemp("files") / "photos", load("digits")
    source = digits.splits["test"].source
    for label in (7, 0, 3):
        folder = root / source.classes[label]
        folder.mkdir(parents=True)
        for row in np.flatnonzero(source.labels == label)[:12].tolist():
            Image.fromarray(source.batch(np.array([row]))[0, 0]).save(folder / f"{row:04}.png")
    return root


def test_on_the_test_split_of_its_own_data(offramp: Offramp, bundle: Path) -> None:
    ran = offramp("evaluate", bundle, "--batch-size", 50, "--json")
    assert ran.status == 0, ran.err
    result, measured = ran.json, read_manifest(bundle).measured
    assert (result["data"], result["split"], result["samples"]) == ("digits", "test", 359)
    assert (result["precision"], result["runtime"], result["bundle"]) == ("float32", "onnx", str(bundle))
    for key, value in (("accuracy", measured["accuracy"]), ("macs", measured["macs"])):
        assert result["early_exit"][key] == pytest.approx(value)
    assert result["shares"] == pytest.approx(measured["shares"])
    assert result["last_exit"]["accuracy"] == pytest.approx(measured["plain_accuracy"]) == result["accuracy"][3]
    assert result["last_exit"]["macs"] == sum(measured["segment_macs"]) == result["macs"][3]
    assert result["plain_macs"] == measured["plain_macs"] and result["macs"][1] == measured["segment_macs"][0]
    assert result["accuracy"][0] is result["top5"][2] is result["macs"][0] is None
    assert result["accuracy"][1] <= result["top5"][1] <= 1
    assert result["early_exit"]["ms"] > 0 and result["last_exit"]["ms"] > 0 and result["speedup"] > 0


def test_the_tables(offramp: Offramp, bundle: Path) -> None:
    ran = offramp("evaluate", bundle, "--batch-size", 400)
    assert ran.status == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == f"{bundle} (float32): test of digits, 359 images"
    assert [line.split()[0] for line in lines[2:6]] == ["exit", "exit", "exit", "final"]
    assert lines[2].split()[-1] == lines[4].split()[-1] == "off" and max(map(len, lines[1:])) <= 80
    assert "all to the last exit" in ran.out and "no times: there is no full batch of this size" in ran.out
    result = offramp("evaluate", bundle, "--batch-size", 400, "--json").json
    assert lines[-1].endswith(f" MACs, {result['plain_macs'] / result['early_exit']['macs']:.2f}x those of early exit")


def test_on_files_of_some_classes(offramp: Offramp, bundle: Path, files: Path) -> None:
    """Undivided images are all evaluated, read as the bundle reads them, and labelled by the names of their folders."""
    ran = offramp("evaluate", bundle, "--data", f"folder:{files}", "--json", "--runtime", "onnx")
    assert ran.status == 0, ran.err
    predictions = list(open_bundle(bundle).predict([files]))
    right = [prediction.label == Path(prediction.image).parent.name for prediction in predictions]
    assert (ran.json["split"], ran.json["samples"]) == ("all", 36) and not any(row.error for row in predictions)
    assert ran.json["early_exit"]["accuracy"] == pytest.approx(np.mean(right))
    assert ran.json["shares"][1] == pytest.approx(np.mean([prediction.exit == 1 for prediction in predictions]))
    divided = files.parent / "divided"
    for part in ("train", "val"):
        shutil.copytree(files, divided / part)
    shutil.rmtree(divided / "val" / "0")
    ran = offramp("evaluate", bundle, "--data", f"folder:{divided}", "--json")
    assert (ran.json["split"], ran.json["samples"]) == ("val", 24), ran.err


def test_what_is_wrong_with_the_images_is_named(offramp: Offramp, bundle: Path, files: Path, tmp_path: Path) -> None:
    unlabelled, unknown, damaged = tmp_path / "unlabelled", tmp_path / "unknown", tmp_path / "damaged"
    unlabelled.mkdir()
    shutil.copy(next(files.glob("0/*.png")), unlabelled / "a.png")
    shutil.copytree(files, unknown)
    (unknown / "3").rename(unknown / "three")
    shutil.copytree(files, damaged)
    (damaged / "7" / "z.png").write_bytes((unlabelled / "a.png").read_bytes()[:60])
    for data, reason in {
        f"folder:{unlabelled}": "contains images but no class folders (a.png, …)",
        f"folder:{unknown}": f"has the class 'three', which {bundle} does not know (its 10 classes: '0', '1', '2', '3',"
        " '4', …): label the images by these classes",
        f"folder:{damaged}": "z.png",
        f"folder:{tmp_path / 'nowhere'}": "nowhere does not exist",
        "digit": "unknown data set 'digit'",
    }.items():
        ran = offramp("evaluate", bundle, "--data", data, "--json")
        assert ran.status in (1, 2) and reason in ran.json["error"], ran.out


def test_options_that_do_not_belong_together(offramp: Offramp, bundle: Path, trained: Path, files: Path) -> None:
    data = f"folder:{files}"
    for words, reason in (
        ((bundle, "--frontier"), f"--frontier is for a run, and {bundle} is a bundle: leave it out"),
        ((bundle, "--baseline", trained), "--baseline is for a run"),
        ((bundle, "--weights", "best"), "--weights is for a run"),
        ((bundle, "--device", "cpu"), "--device is for a run"),
        ((trained, "--data", data), f"--data is for a bundle, and {trained} is not one: leave it out"),
        ((trained, "--runtime", "onnx"), "--runtime is for a bundle"),
        ((bundle, "--data", data, "--data.resize", 9), "--data.resize is decided by the bundle's preprocessing"),
        ((bundle, "--data.check", "full"), "made of digits and its options: leave --data.check out"),
        ((bundle, "--data", data, "--net.width", 9), "--net.KEY is for train: evaluate takes --data.KEY alone"),
        ((bundle, "--batch-size", 0), "--batch-size must be at least 1, got 0"),
    ):
        ran = offramp("evaluate", *words)
        assert ran.status == 2 and reason in " ".join(ran.err.split()), ran.err


def test_a_bundle_that_does_not_say_its_data_or_operations(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    values = read_manifest(bundle)
    nameless = {**values.provenance, "config": None}
    more = {**values.provenance, "split": {"images": {"test": 300}}}
    for changed, reason in (
        ({"provenance": nameless}, "name labelled images, such as --data folder:PATH"),
        ({"measured": {}}, "does not say how many operations its segments have: export the bundle again"),
        ({"provenance": more}, "test of digits has 359 images here and had 300 in training"),
    ):
        (copy / "manifest.json").write_text(render(dataclasses.replace(values, **changed)))
        ran = offramp("evaluate", copy, "--batch-size", 400)
        assert reason in " ".join(ran.err.split()), (json.dumps(changed)[:50], ran.err)


def test_the_int8_benchmark_compares_bundles_as_they_are(bundle: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "int8.py"
    words = [sys.executable, str(script), "--bundles", str(bundle), "--seconds", "0.1", "--json"]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1] / "nets")
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout)["bundles"][bundle.name]
    assert measured["accuracy"] == offramp.evaluate_bundle(bundle).early_exit.accuracy
    assert [measured[f"batch {size}"]["times_faster"] for size in (1, 64)] == [1.0, 1.0]
