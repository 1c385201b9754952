"""Every figure says where it comes from: in plain values, from this process and this checkout."""

import json
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import offramp
from offramp.measure.provenance import FOR_GPUS, PACKAGES, _driver, hardware, provenance


def test_it_is_plain_and_complete() -> None:
    result = provenance()
    assert json.loads(json.dumps(result)) == result
    assert set(result) == {"command", "date", "commit", "versions", "hardware"}
    assert {"python", *PACKAGES} <= set(result["versions"]) <= {"python", *PACKAGES, *FOR_GPUS}
    assert torch.__version__.startswith(result["versions"]["torch"])  # some builds tell more in the module
    assert result["versions"]["offramp"] == offramp.__version__
    written = datetime.strptime(result["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def test_packages_of_gpus_are_named_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.measure.provenance._version", lambda name: f"version of {name}")
    assert provenance()["versions"]["onnxruntime-gpu"] == "version of onnxruntime-gpu"


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


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            "535.183.01",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U22)  "
            "Thu Jan 23 23:19:56 UTC 2025\nGCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n",
            "570.86.15",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54  Tue\n", "550.54"),
        ("something else\n", None),
        (None, None),
    ],
)
def test_the_driver_is_what_its_kernel_module_says(tmp_path: Path, text: str | None, version: str | None) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert _driver(tmp_path / "version", "no-such-program") == version


def test_the_driver_where_the_kernel_says_nothing(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.159.03\n")
    program.chmod(0o755)
    assert _driver(tmp_path / "version", str(program)) == "580.159.03"


def test_numbers_of_a_gpu_say_what_they_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    about = types.SimpleNamespace(total_memory=139 * 2**30, major=9, minor=0)
    for name, value in {
        "is_available": True,
        "get_device_name": "H",
        "current_device": 0,
        "device_count": 2,
        "get_device_properties": about,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    result = hardware()
    assert result.keys() >= {"gpu", "gpus", "gpu_memory_gib", "capability", "cuda", "cudnn", "driver"}
    assert (result["gpu"], result["gpus"], result["gpu_memory_gib"], result["capability"]) == ("H", 2, 139.0, "9.0")
