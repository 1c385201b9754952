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
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def arrived() -> Tree:
        for event in events:
            event.synchronize()
        copied: Tree = tree_unflatten(copies, structure)
        return copied

    return arrived


def on_host(rows: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Every tuple of tensors on the CPU; of a GPU, each once the next one is queued there: one wait per tuple."""
    waiting: deque[tuple[tuple[Tensor, ...], torch.cuda.Event]] = deque()
    for row in rows:
        if not any(tensor.is_cuda for tensor in row):
            yield row
            continue
        copies = tuple(_begun(tensor) for tensor in row)
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        waiting.append((copies, event))
        if len(waiting) > 1:
            yield _ended(*waiting.popleft())
    while waiting:
        yield _ended(*waiting.popleft())


def _begun(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that may not have arrived yet; tensors of the CPU themselves."""
    return tensor.detach().to("cpu", non_blocking=True)


def _ended(copies: tuple[Tensor, ...], event: torch.cuda.Event) -> tuple[Tensor, ...]:
    event.synchronize()
    return tuple(copy.clone() for copy in copies)  # pinned memory is scarce
