"""Compiles `guard.cpp` once, and runs `checks.py` with it in a process of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
SOURCE = HERE / "guard.cpp"
TORCH = Path(torch.__file__).parent


def guard() -> Path | None:
    """The compiled library, kept for this source and this PyTorch; None if there is no compiler."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "offramp-tests"
    digest = hashlib.blake2b(SOURCE.read_bytes() + torch.__version__.encode(), digest_size=8).hexdigest()
    library, compiler = cache / f"guard-{digest}.so", shutil.which("g++")
    if library.is_file() or compiler is None:
        return library if library.is_file() else None
    cache.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}")
    options = f"-O0 -shared -fPIC -std=c++20 -I{TORCH}/include -L{TORCH}/lib -ltorch_cpu -lc10"
    subprocess.run([compiler, str(SOURCE), *options.split(), "-o", str(part)], check=True)
    part.replace(library)
    return library


def run(library: Path, checks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The result of every check, by name."""
    paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": f"{TORCH}/lib",
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "checks.py"), *checks]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {result["check"]: result for result in map(json.loads, ran.stdout.splitlines())}
