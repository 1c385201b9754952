"""How the C library's allocator treats freed memory: a setting of the whole process, made where a program starts."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system after every tensor; no effect elsewhere.

    A step of a convolutional network on a CPU frees and allocates its large tensors again and again, and the system
    clears the pages each time: about a twentieth of a core's time in the four-exit ResNet18.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
