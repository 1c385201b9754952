"""One optimiser step: forward, the method's terms, backward, update."""

from offramp.methods._method import Terms
from offramp.methods._parts import Parts
from offramp.outputs import Batch

__all__ = ["Parts", "one_step"]


def one_step(parts: Parts, batch: Batch, progress: float) -> Terms:
    """Minimise the sum of the objective's terms on one batch; answers the terms, detached."""
    outputs = parts.net(batch.inputs, tap=parts.tap)
    return parts.update(parts.objective(outputs, batch, progress))
