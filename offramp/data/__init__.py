"""Data sources: one file each; resident and streaming access; augmentation of whole batches.

Importing this package imports numpy only; `Loader` and `uniform` bring torch when they are first used.
"""

from importlib import import_module
from typing import Any

from offramp.data.load import available, built_in, find, load
from offramp.data.splits import DataSet, Source, Split

__all__ = ["DataSet", "Loader", "Source", "Split", "available", "built_in", "find", "load", "uniform"]

_HOME = {"Loader": "offramp.data.loading", "uniform": "offramp.data.counter_hash"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'offramp.data' has no attribute {name!r}")
