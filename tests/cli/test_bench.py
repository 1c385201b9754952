"""offramp bench: every runtime that is there beside the others, on a run or a bundle; what makes no sense is named."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.adapt.policy import ExitPolicy, save
from offramp.bundle.manifest import render
from offramp.bundle.read import read_manifest
from offramp.cli import main

Offramp = Callable[..., Any]
OPENVINO = importlib.util.find_spec("openvino") is not None
QUICK = ("--batch", "1,3", "--seconds", "1e-6")
POLICY = ExitPolicy(thresholds=(0.5, 0.2, 0.5), enabled=(False, True, True))
OWN = """from torch import nn


def small(classes, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A very small network with three exits of which the first is off, trained for an epoch on digits."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "net_to_bench.py").write_text(OWN)
    words = "--net python:net_to_bench:small --exits-after 1,3 --branch linear --precision 32 --method joint"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with pytest.raises(SystemExit) as left:
            main(["train", *words.split(), "--data", "digits", "--epochs", "1", "--out", str(folder / "run"), "--json"])
        assert not left.value.code
        save(POLICY, folder / "run" / "policy.json")
        yield folder / "run"


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Path:
    folder = trained.parent / "bundle"
    with pytest.raises(SystemExit) as left:
        main(["export", str(trained), "--out", str(folder), "--json"])
    assert not left.value.code
    return folder


def test_a_run_in_every_runtime(offramp: Offramp, trained: Path) -> None:
    ran = offramp("bench", trained, *QUICK, "--json", "--threads", 1)
    assert ran.status == 0, ran.err
    found = ran.json
    expected = ["torch", "torch-bf16", "onnx", *(["openvino"] if OPENVINO else [])]
    assert set(found["left_out"]) == ({"openvino"} - set(expected))
    assert [each["batch"] for each in found["batches"]] == [1, 3]
    for each in found["batches"]:
        assert list(each["runtimes"]) == expected and each["rounds"] >= 5
        for report in each["runtimes"].values():
            assert report["shares"][0] == 0 and len(report["segment_ms"]) == 2
            assert sum(report["shares"]) == pytest.approx(1)
            for way in ("plain", "all", "adaptive", "off"):
                assert 0 < report[way]["p50"] <= report[way]["p95"] <= report[way]["p99"]
        same = [report["shares"] for name, report in each["runtimes"].items() if name != "torch-bf16"]
        assert same == [same[0]] * len(same)
    assert found["images"] == {"from": "test", "count": 359, "seed": 0} and found["kind"] == "run"
    assert found["policy"]["enabled"] == [False, True, True] and found["threads"] == 1
    assert found["provenance"]["hardware"] and found["least_of_predicted"] > 0


def test_the_tables_fit_eighty_columns(offramp: Offramp, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.cli._sides.NEEDS", {"openvino": ("a_package_that_is_not_there",)})
    ran = offramp("bench", trained, *QUICK, "--runtimes", "torch,openvino")
    assert ran.status == 0, ran.err
    first, *lines = ran.out.splitlines()
    assert first == f"{trained}: 359 images of test, in random order"
    assert max(map(len, lines)) <= 80
    assert lines[0] == "left out: openvino (not installed: pip install 'offramp[export,openvino]')"
    words = [line.split() for line in lines if line]
    assert [line[:2] for line in words].count(["torch", "plain"]) == 2
    assert (
        sum(line[0] == "adaptive" for line in words) == 2 and sum(line[:2] == ["exits", "off"] for line in words) == 2
    )
    assert sum(line[:2] in (["1", "torch"], ["3", "torch"]) for line in words) == 2


def test_a_bundle_on_its_own_data_and_on_a_folder(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    runtimes = ["onnx", *(["openvino"] if OPENVINO else [])]
    ran = offramp("bench", bundle, *QUICK, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["kind"] == "bundle" and ran.json["images"]["count"] == 359
    assert all(list(each["runtimes"]) == runtimes for each in ran.json["batches"])
    for number in range(3):
        Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("no image")
    ran = offramp("bench", bundle, *QUICK, "--json", "--images", tmp_path, "--runtimes", "onnx")
    assert ran.status == 0 and ran.json["images"] == {"from": str(tmp_path), "count": 3, "seed": 0}
    assert ran.err == "offramp: 1 of 4 images could not be read and are left out\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--batch", "0"), "--batch takes whole numbers from 1 on with commas between, such as 1,64, got '0'"),
        (("--batch", "1,x"), "--batch takes whole numbers from 1 on"),
        (("--seconds", "0"), "--seconds must be a positive number, got 0.0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("--images", "x"), "--images is for a bundle; a run is measured on its own test images"),
        (("--runtimes", "tensorrt"), "unknown runtime 'tensorrt'"),
        (("--runtimes", "onxx"), "the nearest is 'onnx'"),
    ],
)
def test_words_that_make_no_sense(offramp: Offramp, trained: Path, words: tuple[str, ...], says: str) -> None:
    ran = offramp("bench", trained, *words)
    assert ran.status == (1 if "--images" in words else 2) and says in ran.err and ran.err.count("\n") == 1


def test_what_a_bundle_does_not_have(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    ran = offramp("bench", bundle, "--runtimes", "torch")
    assert ran.status == 1 and "a bundle has onnx and openvino, not torch: name the run for that" in ran.err
    ran = offramp("bench", bundle, "--images", tmp_path)
    assert ran.status == 1 and f"there is no image to measure on in {tmp_path}: " in ran.err
    (tmp_path / "bad.png").write_text("no image")
    ran = offramp("bench", bundle, "--images", tmp_path)
    assert ran.status == 1 and "bad.png: no PNG, JPEG" in ran.err


def test_a_run_without_a_policy_and_no_run(offramp: Offramp, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "policy.json").unlink()
    ran = offramp("bench", run)
    assert ran.status == 1 and f"has no policy yet: fit one with `offramp calibrate {run} --max-drop 0.5`" in ran.err
    ran = offramp("bench", tmp_path)
    assert ran.status == 1 and "is no run: it holds runs, name one of them" in ran.err


def test_when_nothing_is_installed(offramp: Offramp, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.cli._sides.NEEDS", {"openvino": ("a_package_that_is_not_there",)})
    ran = offramp("bench", trained, "--runtimes", "openvino")
    assert ran.status == 1
    assert "no runtime is left: openvino is not installed: pip install 'offramp[export,openvino]'" in ran.err


def test_a_bundle_that_does_not_say_which_data(bundle: Path) -> None:
    from offramp.cli._sides import _data_of

    hub = {"data": "cifar10", "data-dir": "hub:somebody/something"}
    for about in ({}, {"config": [1]}, {"config": {"data": "hub:somebody/something"}}, {"config": hub}):
        with pytest.raises(ValueError, match="does not say which data here it was made of: name a folder of --images"):
            _data_of(bundle, about, None, show=False)


def test_a_bundle_does_not_say_where_to_write(bundle: Path, tmp_path: Path) -> None:
    from offramp.cli._sides import _data_of

    draw = np.random.RandomState(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.randint(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    elsewhere = tmp_path / "elsewhere"
    config = {"data": f"folder:{tmp_path / 'images'}", "holdout": 0, "data.cache-dir": str(elsewhere)}
    data = _data_of(bundle, {"config": config}, None, show=False)
    assert len(data.splits["test"]) == 4 and not elsewhere.exists()


def test_a_bundle_of_other_images(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(bundle, tmp_path / "b"))
    manifest = read_manifest(made)
    (made / "manifest.json").write_text(render(replace(manifest, classes=(*"012345678", "nine"))))
    ran = offramp("bench", made, *QUICK)
    assert ran.status == 1 and f"digits has other classes than {made} was trained on: class 9 is '9'" in ran.err
