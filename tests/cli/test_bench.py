"""offramp bench: every runtime that is there beside the others, on a run or a bundle; invalid options are named."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.bundle.manifest import render
from offramp.bundle.read import read_manifest
from offramp.config import build_data
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import save
from offramp.runs import load_run
from offramp.runs.bench import Benchmark
from offramp.runs.bench_text import _savings, _slower

Offramp = Callable[..., Any]
OPENVINO = importlib.util.find_spec("openvino") is not None
QUICK = ("--batch", "1,3", "--seconds", "1e-6")
POLICY = ExitPolicy(thresholds=(0.5, 0.2, 0.5), enabled=(False, True, True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, my_nets: str, succeed: Callable[..., None]) -> Path:
    """A very small network with three exits of which the first is off, trained for an epoch on digits."""
    run = tmp_path_factory.mktemp("bench") / "run"
    words = f"--net python:{my_nets}:small --exits-after 1,3 --branch linear --precision 32 --method joint"
    succeed("train", *words.split(), "--data", "digits", "--epochs", 1, "--out", run, "--json")
    save(POLICY, run / "policy.json")
    return run


@pytest.fixture(scope="module")
def bundle(trained: Path, succeed: Callable[..., None]) -> Path:
    folder = trained.parent / "bundle"
    succeed("export", trained, "--out", folder, "--json")
    return folder


def test_a_run_in_every_runtime(offramp: Offramp, trained: Path) -> None:
    ran = offramp("bench", trained, *QUICK, "--json", "--threads", 1)
    assert ran.status == 0, ran.err
    result = ran.json
    expected = ["torch", "torch-bf16", "onnx", *(["openvino"] if OPENVINO else [])]
    assert set(result["left_out"]) == ({"openvino"} - set(expected))
    assert [each["batch"] for each in result["batches"]] == [1, 3]
    for each in result["batches"]:
        assert list(each["runtimes"]) == expected and each["rounds"] >= 5
        for report in each["runtimes"].values():
            assert report["shares"][0] == 0 and len(report["segment_ms"]) == 2
            assert sum(report["shares"]) == pytest.approx(1)
            for way in ("plain", "all", "adaptive", "off"):
                assert 0 < report[way]["p50"] <= report[way]["p95"] <= report[way]["p99"]
        same = [report["shares"] for name, report in each["runtimes"].items() if name != "torch-bf16"]
        assert same == [same[0]] * len(same)
    assert result["images"] == {"from": "test", "count": 359, "seed": 0} and result["kind"] == "run"
    assert result["policy"]["enabled"] == [False, True, True] and result["threads"] == 1
    assert result["provenance"]["hardware"]
    reports = [report for each in result["batches"] for report in each["runtimes"].values()]
    assert result["least_of_predicted"] == min(report["of_predicted"] for report in reports) > 0
    slow = [report["off_of_plain"] for report in reports if report["plain"]["p50"] >= 5]
    assert result["most_off_of_plain"] == max(slow, default=None)


def test_the_tables_fit_eighty_columns(offramp: Offramp, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.runs.backends.NEEDS", {"openvino": ("a_package_that_is_not_there",)})
    ran = offramp("bench", trained, *QUICK, "--runtimes", "torch,openvino")
    assert ran.status == 0, ran.err
    first, *lines = ran.out.splitlines()
    assert first == f"{trained}: 359 images of test, in random order"
    assert max(map(len, lines)) <= 80
    assert lines[0] == "on cpu: torch"
    assert lines[1] == "left out: openvino (not installed: pip install 'offramp[export,openvino]')"
    words = [line.split() for line in lines if line]
    assert [line[:2] for line in words].count(["torch", "plain"]) == 2
    ways = [line[:2] for line in words if line[-1].endswith("x")]
    assert ways.count(["early", "exit"]) == ways.count(["exits", "off"]) == 2
    assert sum(line[:2] in (["1", "torch"], ["3", "torch"]) for line in words) == 2
    plain = 1.0
    for *_, rate, relative in (line for line in words if line[-1].endswith("x")):
        plain = float(rate.replace(",", "")) if relative == "1.00x" else plain
        assert float(relative[:-1]) == pytest.approx(float(rate.replace(",", "")) / plain, rel=0.01, abs=0.01)


def test_shares_are_rounded_and_the_table_of_a_baseline_fits_eighty_columns() -> None:
    numbers = dict.fromkeys(("speedup", "predicted", "of_predicted", "off_of_plain"), 0.85)
    report = {**numbers, "rival_speedup": {"baseline": 1.5}, "shares": [0.996, 1 / 6, 0.004, 0.25]}
    records = [{"batch": size, "runtimes": {"torch-bf16": report}} for size in (1, 8, 64)]
    benchmark = Benchmark("run", "run", {}, 1.0, 1, {}, {}, records, 1.0, None, {}, {"source": "plain"})
    *_, row = table = _savings(benchmark).splitlines()
    assert row.endswith("  100 17 0 25") and max(map(len, table)) <= 80
    (text,) = _slower(benchmark)
    assert "--never-slower-at 1,8,64," in text and max(map(len, text.splitlines())) <= 80


def test_runtimes_of_gpus_are_not_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.runs import backends

    monkeypatch.setattr(backends, "absent_on_gpu", lambda runtime: "")
    assert backends.absent("onnx-cuda") == "for GPUs, and PyTorch sees none here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen, _ = backends.choose(None, backends.RUNTIMES, "cuda")
    assert {*backends.ON_GPUS} < {*chosen}
    chosen, _ = backends.choose(None, backends.RUNTIMES, "cpu")
    assert "torch" in chosen and not {*backends.ON_GPUS} & {*chosen}
    with pytest.raises(ValueError, match="no runtime is left: torch-graph is for GPUs, not for device=cpu"):
        backends.choose(["torch-graph"], backends.RUNTIMES, "cpu")


PACKAGES = importlib.util.find_spec


@pytest.mark.parametrize(
    ("gone", "of_run", "of_bundle"),
    [
        (("onnx",), "pip install onnx onnxruntime-gpu", "pip install onnx onnxruntime-gpu"),
        (("onnxscript",), "pip install onnxscript onnxruntime-gpu", ""),
        (("onnx", "onnxscript"), "pip install onnx onnxscript onnxruntime-gpu", "pip install onnx onnxruntime-gpu"),
        ((), "", ""),
    ],
)
def test_what_a_runtime_of_gpus_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, gone: tuple[str, ...], of_run: str, of_bundle: str
) -> None:
    """A run is exported for it, a bundle was exported."""
    from offramp.runs import backends

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "absent_on_gpu", lambda runtime: "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else PACKAGES(name))
    for runtime in backends.PROVIDERS:
        for exported, says in ((False, of_run), (True, of_bundle)):
            assert backends.absent(runtime, "cuda", exported) == (says and f"not installed: {says}")
        if of_run:
            with pytest.raises(ImportError, match=f"runtime={runtime} is not installed: {of_run}"):
                backends.require(runtime, "cuda")


@pytest.mark.parametrize("verb", ["bench", "calibrate"])
def test_a_runtime_that_is_not_here_is_named_before_anything_is_computed(
    offramp: Offramp, trained: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def computed(*_: Any, **__: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("offramp.runs.run_data.build_data", computed)
    monkeypatch.setattr("offramp.runs.backends.absent_on_gpu", lambda runtime: "not installed: pip install it")
    words = {"bench": ("--runtimes", "onnx-cuda"), "calibrate": ("--ms", 1, "--runtime", "onnx-cuda")}[verb]
    ran = offramp(verb, trained, *words)
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert "onnx-cuda is not installed: pip install it" in ran.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["bench", "evaluate", "curves", "calibrate"])
def test_a_gpu_that_is_not_here_is_no_mistake_of_the_run(offramp: Offramp, trained: Path, verb: str) -> None:
    ran = offramp(verb, trained, "--device", "cuda", *(("--macs", 0.5) if verb == "calibrate" else ()))
    assert ran.err.startswith("offramp: --device cuda: PyTorch ") and "; take --device cpu or auto\n" in ran.err


def test_a_bundle_on_its_own_data_and_on_a_folder(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    runtimes = ["onnx", *(["openvino"] if OPENVINO else [])]
    threads = torch.get_num_threads()
    ran = offramp("bench", bundle, *QUICK, "--json", "--threads", threads + 1)
    assert ran.status == 0, ran.err
    assert torch.get_num_threads() == threads
    assert ran.json["kind"] == "bundle" and ran.json["threads"] == threads + 1 and ran.json["images"]["count"] == 359
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
        (("--batch", "0"), "--batch takes comma-separated whole numbers from 1, such as 1,64, got '0'"),
        (("--batch", "1,x"), "--batch takes comma-separated whole numbers from 1"),
        (("--seconds", "0"), "--seconds must be a positive number, got 0.0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("--images", "x"), "--images is for a bundle; a run is measured on its own test split (--data-dir)"),
        (("--runtimes", "tensorrt"), "unknown runtime 'tensorrt'"),
        (("--runtimes", "onxx"), "the nearest is 'onnx'"),
    ],
)
def test_words_that_make_no_sense(offramp: Offramp, trained: Path, words: tuple[str, ...], says: str) -> None:
    ran = offramp("bench", trained, *words)
    assert ran.status == (1 if "--images" in words else 2) and says in ran.err and ran.err.count("\n") == 1


def test_what_a_bundle_does_not_have(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    ran = offramp("bench", bundle, "--device", "cpu")
    assert (
        ran.status == 2 and "--device is for a run: a bundle's runtimes name theirs, as in --runtimes onnx" in ran.err
    )
    ran = offramp("bench", bundle, "--runtimes", "torch")
    assert (
        ran.status == 1
        and "a bundle has onnx, openvino, onnx-cuda, onnx-tensorrt, not torch: name the run for that" in ran.err
    )
    ran = offramp("bench", bundle, "--images", tmp_path)
    assert ran.status == 1 and f"there is no image to measure on in {tmp_path}: " in ran.err
    (tmp_path / "bad.png").write_text("no image")
    ran = offramp("bench", bundle, "--images", tmp_path)
    assert ran.status == 1 and "bad.png: no PNG, JPEG" in ran.err


def test_a_run_without_a_policy_and_no_run(offramp: Offramp, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "policy.json").unlink()
    ran = offramp("bench", run)
    assert ran.status == 1 and f"has no policy yet: fit one with `offramp calibrate {run} --max-drop 0.5%`" in ran.err
    (run / "best.safetensors").unlink()
    ran = offramp("bench", run, "--weights", "best")
    assert ran.status == 1 and "has no best.safetensors: it held nothing out" in ran.err
    ran = offramp("bench", tmp_path)
    assert ran.status == 1 and "is not a run: it contains runs, name one of them" in ran.err


def test_when_nothing_is_installed(offramp: Offramp, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.runs.backends.NEEDS", {"openvino": ("a_package_that_is_not_there",)})
    ran = offramp("bench", trained, "--runtimes", "openvino")
    assert ran.status == 1
    assert "no runtime is left: openvino is not installed: pip install 'offramp[export,openvino]'" in ran.err


def test_a_damaged_bundle_is_not_measured(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = copy / "segment-1.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    ran = offramp("bench", copy, *QUICK)
    assert ran.status == 1 and f"{model} is truncated or changed since it was written" in ran.err


def test_every_runtime_computes_the_network(trained: Path) -> None:
    """Plain is the final exit alone; all exits, and those that the policy enables, give what the network gives."""
    from offramp.runs.backends import of_run

    loaded = load_run(trained)
    sides = of_run(loaded, None, torch.get_num_threads(), lambda: build_data(loaded.config), 5)
    with torch.inference_mode():
        for runner in sides.runners:
            inputs = runner.to_inputs(sides.pixels[:5])
            wanted = loaded.net(torch.as_tensor(np.asarray(inputs))).logits
            with runner.scope():
                plain = runner.plain(inputs, ())[2]
                result = {name: chained(segments, inputs) for name, segments in parts(runner).items()}
            assert_near(plain, wanted[-1], runner.name)
            assert_near(result["everything"], wanted, runner.name)
            assert_near(result["enabled"], wanted[list(POLICY.enabled)], runner.name)


def parts(runner: Any) -> dict[str, Any]:
    return {"everything": runner.everything, "enabled": runner.segments}


def chained(segments: Any, inputs: Any) -> Any:
    """The logits of segments that follow each other."""
    state, carry, result = inputs, (), []
    for segment in segments:
        state, carry, logits = segment(state, carry)
        result.append(np.asarray(torch.as_tensor(logits).float()))
    return np.stack(result)


def assert_near(values: Any, wanted: torch.Tensor, name: str) -> None:
    values = torch.as_tensor(values).float()
    torch.testing.assert_close(values, wanted, rtol=0, atol=0.05 if name == "torch-bf16" else 1e-4)


def test_a_bundle_that_does_not_say_which_data(bundle: Path) -> None:
    from offramp.runs.bench_images import data_of

    hub = {"data": "cifar10", "data-dir": "hub:somebody/something"}
    for about in ({}, {"config": [1]}, {"config": {"data": "hub:somebody/something"}}, {"config": hub}):
        with pytest.raises(ValueError, match="does not record which data it was made from: name a folder of images"):
            data_of(bundle, about, None)


def test_a_bundle_does_not_say_where_to_write(bundle: Path, tmp_path: Path) -> None:
    from offramp.runs.bench_images import data_of

    draw = np.random.RandomState(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.randint(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    elsewhere = tmp_path / "elsewhere"
    config = {"data": f"folder:{tmp_path / 'images'}", "holdout": 0, "data.cache-dir": str(elsewhere)}
    data = data_of(bundle, {"config": config}, None)
    assert len(data.splits["test"]) == 4 and not elsewhere.exists()


def test_a_bundle_of_other_images(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    built = Path(shutil.copytree(bundle, tmp_path / "b"))
    manifest = read_manifest(built)
    (built / "manifest.json").write_text(render(replace(manifest, classes=(*"012345678", "nine"))))
    ran = offramp("bench", built, *QUICK)
    assert ran.status == 1 and f"digits has other classes than {built} was trained on: class 9 is '9'" in ran.err
