"""The state of all generators of random numbers on this machine: those of Python, NumPy and PyTorch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy
import torch


class RandomState(NamedTuple):
    """States of the generators of Python, NumPy, PyTorch's CPU and its GPUs; equal if nothing was drawn in between."""

    python: Any
    numpy: tuple[Any, ...]
    torch: bytes
    cuda: tuple[bytes, ...]


def random_state() -> RandomState:
    """The present state."""
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return RandomState(
        random.getstate(),
        (kind, keys.tobytes(), *rest),  # type: ignore[union-attr]
        torch.get_rng_state().numpy().tobytes(),
        tuple(state.numpy().tobytes() for state in gpus),
    )


def restore_random_state(state: RandomState) -> None:
    """Set all generators back."""
    random.setstate(state.python)
    kind, keys, *rest = state.numpy
    numpy.random.set_state((kind, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(_tensor(state.torch))
    if state.cuda:
        torch.cuda.set_rng_state_all([_tensor(each) for each in state.cuda])


@contextmanager
def same_random_state() -> Iterator[None]:
    """Within, random numbers may be drawn; afterwards the generators continue as if none had been drawn."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def seed(value: int) -> None:
    """Seed all generators."""
    random.seed(value)
    numpy.random.seed(value)
    torch.manual_seed(value)
