"""Which GPU of this machine a job gets; known without importing PyTorch."""

import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that tells a process which GPUs there are for it; it sees them as numbers from 0."""


def visible(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that processes started here would see, as `VISIBLE` names them; none if that cannot be known.

    CUDA numbers the visible GPUs from 0, also in a container whose device files are nvidia2 and nvidia3.

    Args:
        devices: folder in which NVIDIA's driver puts a file `nvidiaN` for each GPU.
    """
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # CUDA ignores what follows
    files = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdecimal()]
    return [str(number) for number in range(len(files))]


def least_loaded(gpus: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """The GPU that the fewest jobs have, the first of several; several small jobs share one.

    Args:
        taken: the GPU of every job that is running.
    Returns:
        None if there is no choice: fewer than two GPUs.
    """
    return min(gpus, key=taken.count) if len(gpus) > 1 else None
