"""How many cores this process may use. Runs without torch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """Cores that this process may use: those of its affinity, at most as many as its CPU quota, rounded up.

    The quota is the one of its control groups: `docker run --cpus`, a CPU limit of Kubernetes, systemd's `CPUQuota=`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *(max(1, math.ceil(quota)) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """The quotas, in cores, of the groups of this process and of all groups that contain them."""
    for line in _read(OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if version_2 or "cpu" in controllers.split(","):
            top = GROUPS if version_2 else GROUPS / "cpu"
            group = top / path.lstrip("/")
            for folder in [group, *group.parents]:
                if folder.is_relative_to(top):
                    yield from _quota(folder, version_2)


def _quota(group: Path, version_2: bool) -> Iterator[float]:
    names = ["cpu.max"] if version_2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    values = " ".join(_read(group / name) for name in names).split()
    if len(values) == 2 and all(value.isdecimal() for value in values):  # without a quota: "max" or "-1"
        yield int(values[0]) / int(values[1])


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
