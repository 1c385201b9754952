"""Two network namespaces that a cable joins: two machines, as far as the network is concerned."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@contextlib.contextmanager
def two_namespaces() -> Iterator[list[str]]:
    """Their names, while they exist; skips the test where they cannot be made."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and the program ip")
    names = [f"offramp{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"veth{os.getpid() % 10**6}{letter}" for letter in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for name, end, address in zip(names, cable, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name, "name", "eth0")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
