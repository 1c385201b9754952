"""Where a number comes from: command, seed, commit, versions, hardware. Part of every stored result."""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from offramp import plugins

PACKAGES = (
    "offramp", "torch", "numpy", "lightning-fabric", "pillow", "pyarrow", "safetensors", "onnxruntime", "openvino",
)  # fmt: skip


FOR_GPUS = ("onnxruntime-gpu", "tensorrt", "triton")
"""Packages that compute on GPUs; listed where they are installed."""


def provenance(device: str | None = None) -> dict[str, Any]:
    """Command, date, commit, versions and hardware of this process, as plain values.

    Args:
        device: that the numbers were computed on, `cpu` or `cuda`; named if it is given.

    `versions` has the packages of plugins, too, of which this process has loaded code.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            **{name: text for name in FOR_GPUS if (text := _version(name))},
            **plugins.loaded(),
        },
        "hardware": hardware(),
        **({} if device is None else {"device": device}),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores and threads in use, and the GPU if there is one."""
    able = torch.cpu.get_capabilities()
    return {
        "cpu": able.get("cpu_name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "avx512_bf16": bool(able.get("avx512_bf16")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **(_gpu() if torch.cuda.is_available() else {}),
    }


def _gpu() -> dict[str, Any]:
    """What else a GPU's numbers depend on: how many there are, memory, and the versions of CUDA, cuDNN and driver."""
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpus": torch.cuda.device_count(),
        "gpu_memory_gib": round(about.total_memory / 2**30, 1),
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _driver(),
    }


def _driver(file: Path = Path("/proc/driver/nvidia/version"), program: str = "nvidia-smi") -> str | None:
    """The version of NVIDIA's driver, as its kernel module says it; without that file, as `program` does."""
    try:
        text = file.read_text()
    except OSError:
        try:
            text = _output(program, "--query-gpu=driver_version", "--format=csv,noheader")
        except (OSError, subprocess.SubprocessError):
            return None
    version = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return version[0] if version else None


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, with `-dirty` if it was changed; None outside one."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("-dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return _output("git", "-C", str(folder), *words)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
