"""Which GPU of this machine a job gets; known without importing PyTorch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that tells a process which GPUs there are for it; it sees them as numbers from 0."""


def visible(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that processes started here would see, as `VISIBLE` names them; none if that cannot be known.

    Args:
        devices: folder in which NVIDIA's driver puts a file `nvidiaN` for each GPU.
    """
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        return [name for name in names if name and name != "-1"]
    numbers = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")]
    return sorted((number for number in numbers if number.isdecimal()), key=int)


def least_loaded(gpus: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """The GPU that the fewest jobs have, the first of several; several small jobs share one.

    Args:
        taken: the GPU of every job that is running.
    Returns:
        None if there is no choice: fewer than two GPUs.
    """
    return min(gpus, key=taken.count) if len(gpus) > 1 else None
