"""Random numbers from a counter: (seed, epoch, draw, sample id) decide, nothing else.

Source: G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, 2014 (splitmix64).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The int64 with the same bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    """The finaliser of splitmix64, in Python's integers."""
    value = ((value ^ (value >> 30)) * _MIX[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MIX[1]) & _MASK
    return value ^ (value >> 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def hashed(seed: int, epoch: int, ids: Int[Tensor, "B"], draw: int) -> Int[Tensor, "B"]:
    """64 random bits per sample, equal on every device and in every batch.

    The stream is chosen by (seed, epoch, draw), the place in it by the id.
    """
    return _scattered(ids.to(torch.int64) * _signed(_GOLDEN) + key(seed, epoch, draw))


def key(seed: int, epoch: int, draw: int) -> int:
    """The stream of a draw, as an int64."""
    state = 0
    for part in (seed, epoch, draw):
        state = _mix((state + _GOLDEN + part) & _MASK)
    return _signed(state)


def _scattered(value: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The finaliser of splitmix64 on tensors."""
    value = (value ^ _shift(value, 30)) * _signed(_MIX[0])
    value = (value ^ _shift(value, 27)) * _signed(_MIX[1])
    return value ^ _shift(value, 31)


def uniform(seed: int, epoch: int, ids: Int[Tensor, "B"], draw: int) -> Float[Tensor, "B"]:
    """One number in [0, 1) per sample, float32, a multiple of 2^-24; see `hashed`. `draw` tells uses apart."""
    return _shift(hashed(seed, epoch, ids, draw), 40).to(torch.float32) * 2.0**-24


def uniforms(keys: Int[Tensor, "K"], ids: Int[Tensor, "B"]) -> Float[Tensor, "B K"]:
    """What `uniform` returns, for several draws at once."""
    bits = _scattered(ids.to(torch.int64)[:, None] * _signed(_GOLDEN) + keys)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24
