"""What verbs do with data that have changed, weights that have seen some of them, and values that are not finite."""

import dataclasses
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_nets import NET
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offramp.data import split_record
from offramp.train.run_dir import read_config
from offramp.trust import remember

QUICK = [
    *NET,
    "--method",
    "joint",
    "--batch-size",
    "32",
    "--image-size",
    "8",
    "--precision",
    "32",
    "--device",
    "cpu",
    "--epochs",
    "2",
]


def picture(path: Path, label: int, number: int) -> None:
    """A square whose brightness tells its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1000 * label + number).integers(0, 60, (8, 8, 3), dtype=np.uint8)
    Image.fromarray((pixels + 90 * label).astype(np.uint8)).save(path)


def folder(root: Path, each: int = 40) -> Path:
    for label, name in enumerate("xyz"):
        for number in range(each):
            picture(root / name / f"{number:03d}.png", label, number)
    return root


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    """A folder of images `p`, and a run `r` of it; nobody may change them."""
    root = tmp_path_factory.mktemp("splits")
    folder(root / "p")
    succeed("train", "--data", f"folder:{root / 'p'}", *QUICK, "--holdout", 0.3, "--out", root / "r", "--json")
    return root


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Path:
    """A copy that a test may change: the run's data lie where they lay, `q` is a copy of them."""
    shutil.copytree(originals / "r", tmp_path / "r")
    shutil.copytree(originals / "p", tmp_path / "q")
    return tmp_path


def test_other_pixels_are_evaluated_and_not_those_of_the_stored_trace(place: Path, offramp: Callable[..., Any]) -> None:
    before = offramp("evaluate", place / "r", "--json").json["accuracy"]
    for file in (place / "q").rglob("*.png"):
        Image.new("RGB", (8, 8), (127, 127, 127)).save(file)
    ran = offramp("evaluate", place / "r", "--data-dir", place / "q", "--json")
    assert ran.json["accuracy"][-1] == pytest.approx(1 / 3, abs=0.01)
    assert "images of" in offramp("evaluate", place / "r", "--data-dir", place / "q").err
    assert offramp("evaluate", place / "r", "--json").json["accuracy"] == before


def test_a_grown_folder_keeps_its_split(place: Path, originals: Path, offramp: Callable[..., Any]) -> None:
    run = place / "r"
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(originals / "p"), str(place / "q")))
    remember(read_config(run))
    before = offramp("evaluate", run, "--json").json
    for label, name in enumerate("xyz"):
        picture(place / "q" / name / "000a.png", label, 500)
    ran = offramp("evaluate", run)
    assert ran.status == 0 and "was not made with: 3; they are left out" in ran.err
    after = offramp("evaluate", run, "--json").json
    assert after["accuracy"] == before["accuracy"] and after["samples"] == before["samples"]
    assert "are left out" in offramp("calibrate", run, "--macs", "0.8").err
    (run / "result.json").unlink()  # as if it had been interrupted
    ran = offramp("train", "--config", config, "--out", run, "--resume")
    assert ran.status == 1
    assert (
        "changed after" in ran.err and "3 images are new, 0 are gone," in ran.err and "choose another --out" in ran.err
    )


def test_a_run_without_a_record_of_its_split_says_so(place: Path, offramp: Callable[..., Any]) -> None:
    (place / "r" / "split.safetensors").unlink()
    ran = offramp("evaluate", place / "r")
    assert ran.status == 0 and "r has no record of its split (split.safetensors): its test images may have" in ran.err


def test_stored_traces_serve_if_the_data_are_gone(place: Path, originals: Path, offramp: Callable[..., Any]) -> None:
    run = place / "r"
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(originals / "p"), str(place / "q")))
    remember(read_config(run))
    assert offramp("curves", run).status == 0
    shutil.rmtree(place / "q")
    for words in (["calibrate", run, "--macs", "0.8"], ["curves", run], ["report", run, "--images", "0"]):
        ran = offramp(*words)
        assert ran.status == 0 and "cannot be read: its stored traces are used" in ran.err, words
    shutil.rmtree(run / "traces")
    assert offramp("curves", run).status == 1


def test_a_damaged_trace_is_computed_again_and_said(place: Path, offramp: Callable[..., Any]) -> None:
    run = place / "r"
    offramp("calibrate", run, "--macs", "0.8")
    before = (run / "policy.json").read_text()
    path = run / "traces" / "last-cal.safetensors"
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, "labels": tensors["labels"].roll(1)}, path, said)
    ran = offramp("calibrate", run, "--macs", "0.8")
    assert ran.status == 0 and "last-cal.safetensors was changed since it was written: it is computed again" in ran.err
    now = json.loads((run / "policy.json").read_text())
    assert now["thresholds"] == json.loads(before)["thresholds"]


def test_a_flipped_byte_in_the_weights_is_refused(place: Path, offramp: Callable[..., Any]) -> None:
    path = place / "r" / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    for verb in ("evaluate", "calibrate", "curves", "report"):
        ran = offramp(verb, place / "r", *(["--macs", "0.8"] if verb == "calibrate" else []))
        assert ran.status == 1 and "last.safetensors was changed since it was written" in ran.err


def test_a_value_that_is_not_finite_is_named_by_file_and_tensor(place: Path, offramp: Callable[..., Any]) -> None:
    path = place / "r" / "last.safetensors"
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, path, said)
    ran = offramp("evaluate", place / "r", "--json")
    assert ran.status == 1 and "NaN" not in ran.out.replace("(NaN or infinite)", "")
    assert f"last.safetensors: 1 value is not finite (NaN or infinite) in {name}" in ran.json["error"]
    ran = offramp("train", "--data", "digits", "--weights", path, "--out", place / "b")
    assert ran.status != 0 and "1 value is not finite" in ran.err


def test_images_that_the_weights_were_trained_on_are_kept_out(
    place: Path, originals: Path, offramp: Callable[..., Any]
) -> None:
    words = ["train", "--data", f"folder:{originals / 'p'}", *QUICK, "--weights", place / "r" / "last.safetensors"]
    ran = offramp(*words, "--tune", "exits", "--holdout", "0.6", "--out", place / "b")
    assert ran.status == 0 and "was trained on" in ran.err and "images: they are kept out" in " ".join(ran.err.split())
    first, second = (split_record.load(place / name / "split.safetensors") for name in "rb")
    assert first is not None and second is not None and second.start == "run"
    for name in ("val", "cal", "test"):
        assert not np.isin(second.splits[name], first.splits["train"]).any() and len(second.splits[name])
    assert not np.isin(second.splits["cal"], first.splits["val"]).any()  # which chose the epoch of the weights
    assert np.isin(first.splits["train"], second.before["files"]).all()
    ran = offramp("evaluate", place / "b", "--json")
    assert ran.status == 0 and ran.json["samples"] == len(second.splits["test"])
    same = offramp(*words, "--tune", "exits", "--holdout", 0.3, "--out", place / "c")
    assert same.status == 0 and "kept out" not in same.err


def test_a_split_that_would_lack_a_class_is_refused(place: Path, originals: Path, offramp: Callable[..., Any]) -> None:
    record = split_record.load(place / "r" / "split.safetensors")
    assert record is not None
    everything = np.concatenate(list(record.splits.values()))
    nothing = dict.fromkeys(("val", "cal", "test"), everything[:0])
    split_record.save(
        dataclasses.replace(record, splits={"train": everything, **nothing}), place / "r" / "split.safetensors"
    )
    words = ["train", "--data", f"folder:{originals / 'p'}", *QUICK, "--weights", place / "r" / "last.safetensors"]
    ran = offramp(*words, "--holdout", 0.3, "--out", place / "b")
    assert ran.status == 1 and not (place / "b").exists()
    assert "val images, and the rest lacks class 0 (x): split the data as that run did (the same --holdout" in ran.err


def test_weights_from_elsewhere_come_with_a_sentence(place: Path, originals: Path, offramp: Callable[..., Any]) -> None:
    path = place / "foreign.safetensors"
    shutil.copy(place / "r" / "last.safetensors", path)
    ran = offramp(
        "train",
        "--data",
        f"folder:{originals / 'p'}",
        *QUICK,
        "--holdout",
        0.3,
        "--weights",
        path,
        "--out",
        place / "b",
    )
    sentence = "images of val, cal and test must be new to these weights"
    assert ran.status == 0 and sentence in " ".join(ran.err.split()) and f"--weights {path}" in ran.err
    ran = offramp("calibrate", place / "b", "--risk", "30%")
    assert ran.status == 0 and sentence in " ".join(ran.err.split())
    assert sentence not in offramp("calibrate", place / "r", "--risk", "30%").err


def test_class_names_in_another_unicode_form_are_the_same_classes(tmp_path: Path, offramp: Callable[..., Any]) -> None:
    """NFC and NFD sort differently: of é and f, é comes last in NFC and first in NFD."""
    for form in ("NFC", "NFD"):
        for label, name in enumerate(("\u00e9", "f", "z")):
            for number in range(24):
                picture(tmp_path / form / "p" / unicodedata.normalize(form, name) / f"{number:03d}.png", label, number)
    assert sorted(["f", "\u00e9"]) != [unicodedata.normalize("NFC", name) for name in sorted(["f", "e\u0301"])]
    data = f"folder:{tmp_path / 'NFC' / 'p'}"
    for extra in ((), ("--streaming",)):
        run = tmp_path / f"r{len(extra)}"
        assert not offramp("train", "--data", data, *QUICK, *extra, "--holdout", 0.3, "--out", run, "--json").status
        here = offramp("evaluate", run, "--json").json
        moved = offramp("evaluate", run, "--data-dir", tmp_path / "NFD")
        assert "its class names are in another Unicode form (NFC, NFD): they are taken as the same classes" in moved.err
        assert "gone" not in moved.err and "left out" not in moved.err
        there = offramp("evaluate", run, "--data-dir", tmp_path / "NFD", "--json").json
        assert there["accuracy"] == here["accuracy"] and there["samples"] == here["samples"]


def test_risk_is_not_certified_on_images_that_chose_epochs(
    originals: Path, tmp_path: Path, offramp: Callable[..., Any]
) -> None:
    data = ["--data", f"folder:{originals / 'p'}", *QUICK, "--holdout", 0.3, "--data.shared_holdout", "true"]
    offramp("train", *data, "--out", tmp_path / "r", "--json")
    ran = offramp("calibrate", tmp_path / "r", "--risk", "10%")
    assert ran.status == 1 and not (tmp_path / "r/policy.json").exists()
    assert ran.err == (
        f"offramp: {tmp_path / 'r'} was trained with --data.shared_holdout true: its cal images are its val images "
        "too, which choose epochs and loss weights, so that nothing can be certified on them; set --max-drop instead\n"
    )
    assert not offramp("calibrate", tmp_path / "r", "--max-drop", "5%").status


def test_streamed_files_whose_names_are_not_utf8_are_trained_on(tmp_path: Path, succeed: Callable[..., None]) -> None:
    folder(tmp_path / "p", 20)
    os.rename(tmp_path / "p/x/000.png", os.fsencode(tmp_path / "p/x") + b"/caf\xe9.png")
    data = ["--data", f"folder:{tmp_path / 'p'}", *QUICK, "--holdout", 0.3, "--streaming"]
    succeed("train", *data, "--out", tmp_path / "r", "--json")
    succeed("train", *data, "--out", tmp_path / "r", "--json", "--resume")
    assert sum(map(len, split_record.load(tmp_path / "r/split.safetensors").splits.values())) == 60


def test_damaged_images_are_left_out_on_request_and_recorded(tmp_path: Path, offramp: Callable[..., Any]) -> None:
    folder(tmp_path / "p", 20)
    bad = tmp_path / "p/x/003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    words = ["train", "--data", f"folder:{tmp_path / 'p'}", *QUICK, "--holdout", 0.3, "--out", tmp_path / "r"]
    refused = offramp(*words)
    assert refused.status == 1 and f": {bad} (" in refused.err and refused.err.endswith("out by --skip-damaged\n")
    ran = offramp(*words, "--skip-damaged")
    assert not ran.status and "without1of60images,whichcannotbedecoded:" in "".join(ran.err.split())  # lines are broken
    assert "\nskip-damaged: true\n" in (tmp_path / "r/config.yaml").read_text()
    record = split_record.load(tmp_path / "r/split.safetensors")
    assert record is not None and record.damaged == 1 and sum(map(len, record.splits.values())) == 60
    assert not offramp("evaluate", tmp_path / "r").status
