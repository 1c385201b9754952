"""`train --resume --epochs N` with more epochs than the run had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_nets import CUT
from safetensors.torch import load_file

from offramp.methods import find
from offramp.train import log
from offramp.train.more_epochs import refuse_more_epochs
from offramp.train.recipe import Recipe

Offramp = Callable[..., Any]
WORDS = ("train", *CUT, "--data", "digits", "--batch-size", 256, "--precision", "32")
CONSTANT = (*WORDS, "--schedule", "constant", "--method", "dbt", "--mixup", 0.2, "--ema", 0.9)


def test_an_extended_run_equals_an_uninterrupted_one(offramp: Offramp, tmp_path: Path) -> None:
    assert offramp(*CONSTANT, "--epochs", 1, "--out", tmp_path / "long").status == 0
    ran = offramp("train", "--out", tmp_path / "long", "--resume", "--epochs", 2, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["epochs"] == 2 and yaml.safe_load((tmp_path / "long/config.yaml").read_text())["epochs"] == 2
    assert offramp(*CONSTANT, "--epochs", 2, "--out", tmp_path / "whole").status == 0
    for name in ("last", "best"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("long", "whole"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    records = [log.read(tmp_path / run / "metrics.jsonl", "step") for run in ("long", "whole")]
    assert records[0] == records[1]
    fewer = offramp("train", "--out", tmp_path / "long", "--resume", "--epochs", 1)
    assert fewer.status == 1 and "epochs is 2 there, not 1" in fewer.err
    other_too = offramp("train", "--out", tmp_path / "long", "--resume", "--epochs", 3, "--lr", 0.05)
    assert other_too.status == 1 and "lr is 0.1 there, not 0.05" in other_too.err


def test_the_command_line_says_why_not_and_changes_nothing(offramp: Offramp, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ran = offramp("train", "--out", run, "--resume", "--epochs", 4)
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert "--epochs cannot grow from 2 to 4 on a resume: the learning rate of the schedule step" in ran.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("joint", {"schedule": "cosine"}, "schedule cosine follows the number of epochs"),
        ("joint", {"schedule": "onecycle"}, "schedule onecycle follows"),
        ("joint", {"warmup": 0.1}, r"the warm-up takes a share of the run \(0.1\)"),
        ("joint", {"tune": "mixed"}, "divided into phases"),
        ("imta", {}, "divided into phases"),
        ("muse", {}, "the method changes features over the run"),
        ("l2w", {}, "the method changes meta_lr over the run"),
    ],
)
def test_reasons(method: str, changes: dict[str, Any], says: str) -> None:
    recipe = Recipe(**{"schedule": "constant", "epochs": 4, **changes})
    with pytest.raises(ValueError, match=f"epochs cannot grow from 2 to 4 on a resume: .*{says}.*; choose another out"):
        refuse_more_epochs(recipe, find(method).build(), 2)
