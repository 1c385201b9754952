"""A step counter that is saved with the run, and whose value on the host is known without waiting for a GPU."""

from typing import Any

from torch import Tensor, nn


class HostCounter:
    """Counts in a buffer of a module, and beside it on the host.

    The buffer is read again only if something else has written into it: a checkpoint that was loaded, or a move.
    """

    def __init__(self, buffer: str) -> None:
        self.buffer = buffer
        self.known: tuple[Tensor, int, int] | None = None

    def due(self, module: nn.Module, every: int) -> bool:
        """Count one step; whether it is the first of a period."""
        tensor: Tensor = getattr(module, self.buffer)
        value = 0 if every == 1 else self._value(tensor)
        tensor += 1
        self.known = None if every == 1 else (tensor, tensor._version, value + 1)
        return every == 1 or value % every == 0

    def _value(self, tensor: Tensor) -> int:
        if self.known is not None and self.known[0] is tensor and self.known[1] == tensor._version:
            return self.known[2]
        return int(tensor)

    def __getstate__(self) -> dict[str, Any]:
        return {"buffer": self.buffer, "known": None}  # a copied module counts in a buffer of its own
