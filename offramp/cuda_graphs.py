"""CUDA graphs: what they cannot hold because it waits for the GPU, found by computing it once; and their capture."""

import gc
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


@contextmanager
def capture(device: torch.device) -> Iterator[torch.cuda.CUDAGraph]:
    """Gives a graph that holds the kernels of this context once it is left; they are not run.

    Threads that read images may continue. No garbage is collected meanwhile: a graph in it, of an earlier run, that is
    destroyed makes this capture fail (pytorch #161037).
    """
    graph, outer, collects = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), gc.isenabled()
    gc.disable()
    try:
        # A capture that fails does not leave its stream by itself.
        with torch.cuda.stream(outer), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            yield graph
    finally:
        if collects:
            gc.enable()
