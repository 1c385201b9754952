"""Selects the engine that trains the runs of a comparison."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Protocol, runtime_checkable

from offramp.engine import local
from offramp.engine.local import Job, Watcher
from offramp.lookup import ParameterError


@runtime_checkable
class Engine(Protocol):
    """What `offramp.engine.local` and a Ray cluster have in common."""

    def check(self, folder: Path, gpus: bool) -> None:
        """Refuse a folder that the jobs cannot write to, and GPUs that nothing has; before anything is trained."""

    def run(self, jobs: Sequence[Job], at_once: int, watcher: Watcher, keep_open: int) -> bool:
        """As `offramp.engine.local.run`."""


@contextmanager
def opened(name: str, address: str | None, fetch: bool = False) -> Iterator[Engine]:
    """The engine of this name; a Ray cluster stays connected as long as the context is open.

    Args:
        name: `local` or `ray`.
        address: `HOST:PORT` of the Ray cluster's head; None for $RAY_ADDRESS, a cluster of this machine, or a new one.
        fetch: the nodes of the Ray cluster do not share the folder of the runs, which are fetched.
    Raises:
        ValueError: for another name, an address without Ray, or a cluster that cannot be reached.
    """
    if name not in ("local", "ray"):
        raise ParameterError(f"engine must be local or ray, got {name}", "engine")
    if name == "local":
        if address is not None:
            raise ParameterError(f"address={address} is that of a Ray cluster: add engine=ray", "address", "engine")
        if fetch:
            raise ParameterError("fetch is for the nodes of a Ray cluster: add engine=ray", "fetch", "engine")
        yield local
        return
    from offramp.engine.ray import connected

    with redirect_stdout(sys.stderr), connected(address, fetch) as cluster:  # Ray prints that a node was lost
        yield cluster
