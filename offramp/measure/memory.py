"""How much memory this process has needed at most."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """Largest resident size of this process so far, in MiB; what a GPU holds is not in it.

    On Linux it is read from /proc: what `getrusage` says there begins with the size of the process that started it.
    """
    if _STATUS.exists():
        return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2 ** (20 if sys.platform == "darwin" else 10)
