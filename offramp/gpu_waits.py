"""What waits for a GPU, found by computing it once: CUDA graphs cannot hold it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SAYS = "called a synchronizing CUDA operation"
"""PyTorch's warning in its debug mode."""
IS_NEW = "Synchronization debug mode is a prototype"
"""Its warning about that mode."""


@contextmanager
def waits() -> Iterator[list[str]]:
    """Gives a list that has the place (file:line) of everything in this context that waited, once it is left.

    To be called before a capture, because one that fails leaves PyTorch's allocator as in the middle of a capture.
    """
    places: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        text = str(warning.message)
        if SAYS in text:
            places.append(f"{Path(warning.filename).name}:{warning.lineno}")
        elif IS_NEW not in text:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
