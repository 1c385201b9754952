"""Buffers, weights and gradients that are the same afterwards, whatever a pass does to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn, no_grad


def buffers_of(parts: Sequence[nn.Module]) -> dict[str, Tensor]:
    """All buffers by name."""
    return {name: buffer for part in parts for name, buffer in part.named_buffers(remove_duplicate=False)}


@contextmanager
def same_buffers(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Restore the values of all buffers afterwards."""
    buffers = buffers_of(parts)
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        with no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(before[name])


@contextmanager
def same_tensors(*modules: nn.Module) -> Iterator[None]:
    """Restore the values' places and gradients of all parameters afterwards."""
    before = [(tensor, tensor.data, tensor.grad) for module in modules for tensor in module.parameters()]
    try:
        yield
    finally:
        for tensor, data, grad in before:
            tensor.data, tensor.grad = data, grad
