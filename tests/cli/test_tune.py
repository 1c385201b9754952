"""A run in phases (--tune mixed) that is resumed is the same to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_nets import NET
from safetensors.torch import load_file

from offramp.train import log


@pytest.mark.parametrize(
    "every",
    [pytest.param(6, id="between the phases", marks=pytest.mark.full), pytest.param(4, id="within the second")],
)
def test_a_mixed_run_resumes_to_the_bit(offramp: Callable[..., Any], tmp_path: Path, every: int) -> None:
    words = ["train", *NET, "--data", "digits", "--epochs", 2, "--batch-size", 256, "--precision", 32]
    words += ["--method", "joint", "--tune", "mixed", "--lr-backbone", 0.02, "--checkpoint-every", every]
    assert offramp(*words, "--out", tmp_path / "whole").status == 0
    terms = [set(record["terms"]) for record in log.read(tmp_path / "whole/metrics.jsonl", "step")]
    assert terms[0] == {"final"} and terms[-1] == {"ce"}
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("result.json", "last.safetensors"):
        (tmp_path / "cut" / name).unlink()
    *_, before, newest = sorted((tmp_path / "cut/checkpoints").glob("step-*"))
    assert before.name.endswith("6" if every == 6 else "8")
    shutil.rmtree(newest)
    assert offramp(*words, "--out", tmp_path / "cut", "--resume").status == 0
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
