"""Every figure says where it comes from: in plain values, from this process and this checkout."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import offramp
from offramp.measure.provenance import PACKAGES, hardware, provenance


def test_it_is_plain_and_complete() -> None:
    result = provenance()
    assert json.loads(json.dumps(result)) == result
    assert set(result) == {"command", "date", "commit", "versions", "hardware"}
    assert set(result["versions"]) == {"python", *PACKAGES}
    assert torch.__version__.startswith(result["versions"]["torch"])  # some builds tell more in the module
    assert result["versions"]["offramp"] == offramp.__version__
    written = datetime.strptime(result["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/bin/offramp", "train", "--out", "my runs/a"])
    assert provenance()["command"] == "offramp train --out 'my runs/a'"


def test_the_commit_is_that_of_the_checkout() -> None:
    here = Path(offramp.__file__).parent
    ran = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = provenance()["commit"]
    if ran.returncode:
        assert commit is None
    else:
        assert ran.stdout.startswith(commit.removesuffix("-dirty")) and len(commit.removesuffix("-dirty")) == 12


def test_hardware_is_what_is_in_use() -> None:
    result = hardware()
    assert result["threads"] == torch.get_num_threads() and result["cores"] >= 1
    assert result["cpu"] and isinstance(result["avx512_bf16"], bool)
    assert (result["gpu"] is None) == (not torch.cuda.is_available())
