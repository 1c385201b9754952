"""Copies between the host and a device that do not make the host wait longer than it must."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Tree = TypeVar("Tree")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; for a GPU from pinned memory, so that the host continues at once."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tree: Tree) -> Tree:
    """The same nested dicts, lists and tuples with all tensors on the CPU, detached; one wait for all of a GPU."""
    return begin_to_host(tree)()


def begin_to_host(tree: Tree) -> Callable[[], Tree]:
    """Begins to copy all tensors of nested dicts, lists and tuples to the CPU, detached.

    Returns:
        What waits until they have arrived, and returns them.
    """
    leaves, structure = tree_flatten(tree)
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
    copies = [_begun(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    events = [_recorded(device) for device in devices]

    def arrived() -> Tree:
        for event in events:
            event.synchronize()
        copied: Tree = tree_unflatten(copies, structure)
        return copied

    return arrived


def _recorded(device: torch.device) -> torch.cuda.Event:
    """An event of what is queued on the device's stream so far."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def on_host(rows: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Every tuple of tensors on the CPU; of a GPU, each once the next one is queued there: one wait per tuple."""
    waiting: deque[Callable[[], tuple[Tensor, ...]]] = deque()
    for row in rows:
        if not any(tensor.is_cuda for tensor in row):
            yield row
            continue
        waiting.append(begin_to_host(row))
        if len(waiting) > 1:
            yield _unpinned(waiting.popleft()())
    while waiting:
        yield _unpinned(waiting.popleft()())


def _begun(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that may not have arrived yet; tensors of the CPU themselves."""
    return tensor.detach().to("cpu", non_blocking=True)


def _unpinned(copies: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(copy.clone() for copy in copies)  # pinned memory is scarce
