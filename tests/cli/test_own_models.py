"""A model of the user's own, cut after named layers: drawn, trained, fine-tuned, calibrated, evaluated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

Run = Callable[..., Any]
TRAIN = (
    "--data",
    "digits",
    "--epochs",
    2,
    "--batch-size",
    512,
    "--precision",
    32,
    "--method",
    "joint",
    "--branch",
    "byot",
)


def test_info(offramp: Run, my_nets: str) -> None:
    ran = offramp(
        "info", "--net", f"python:{my_nets}:small", "--exits-after", "1,3", "--image-size", 16, "--json", "--classes", 3
    )
    assert ran.status == 0, ran.err
    assert len(ran.json["macs"]) == 3 and ran.json["shape"] == [3, 16, 16]
    wrong = offramp("info", "--net", "resnet18", "--exits-after", "layer1")
    assert wrong.status == 2 and "--exits-after is for external models" in wrong.err


def test_train_tune_and_evaluate(offramp: Run, my_nets: str, tmp_path: Path) -> None:
    net = ("--net", f"python:{my_nets}:small", "--exits-after", "1,3")
    first = offramp("train", *net, *TRAIN, "--out", tmp_path / "a", "--json")
    assert first.status == 0, first.err
    weights = tmp_path / "a/last.safetensors"
    second = offramp("train", *net, *TRAIN, "--weights", weights, "--tune", "exits", "--out", tmp_path / "b")
    assert second.status == 0, second.err
    one, two = load_file(weights), load_file(tmp_path / "b/last.safetensors")
    trunk = [name for name in one if name.startswith(("stages", "branches.2"))]
    assert trunk and all(torch.equal(one[name], two[name]) for name in trunk)
    assert not all(torch.equal(one[name], two[name]) for name in one)
    weights.rename(tmp_path / "gone")  # a trained run needs them no more
    assert offramp("calibrate", tmp_path / "b", "--macs", 1, "--score", "learned").status == 0
    result = offramp("evaluate", tmp_path / "b", "--json").json
    assert sum(result["adaptive"]["shares"]) == pytest.approx(1) and len(result["accuracy"]) == 3
    for verb in ("curves", "report", "analyse"):  # other tests of these have networks that are not cut
        ran = offramp(verb, tmp_path / "b")
        assert ran.status == 0, ran.err
    assert {"curves.json", "report.html", "analysis"} <= {file.name for file in (tmp_path / "b").iterdir()}


def test_weights_that_do_not_fit(offramp: Run, my_nets: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    net = ("--net", f"python:{my_nets}:small", "--exits-after", "1,3")
    ran = offramp("train", *net, *TRAIN, "--weights", tmp_path / "w.pt", "--out", tmp_path / "a")
    assert ran.status == 1
    assert (
        "w.pt do not fit the network: 8 missing (0.weight, 0.bias, 2.weight, 2.bias and 4 more); 2 unexpected"
        in ran.err
    )
