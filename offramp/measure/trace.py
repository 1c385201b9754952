"""All exits' logits of a data split, computed once."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from offramp.device_copies import on_host
from offramp.outputs import Batch, ExitOutputs, Trace


def trace(
    net: nn.Module | Callable[..., ExitOutputs],
    batches: Iterable[Batch],
    split: str,
    advance: Callable[[int], None] = lambda samples: None,
) -> Trace:
    """Run every exit on the batches and keep the logits, in float32 on the CPU.

    Args:
        net: returns `ExitOutputs`; set to eval mode, and left so.
        batches: batches with class-index labels.
        split: name of the split, kept in the trace.
        advance: called with the number of samples after each batch (for a progress bar).
    Raises:
        ValueError: if there are no batches.
    """
    if isinstance(net, nn.Module):
        net.eval()
    logits, labels, ids = list[Tensor](), list[Tensor](), list[Tensor]()
    with torch.inference_mode():
        for row in on_host((net(batch.inputs).logits.float(), batch.labels, batch.ids) for batch in batches):
            for kept, tensor in zip((logits, labels, ids), row, strict=True):
                kept.append(tensor)
            advance(len(row[2]))
    if not logits:
        raise ValueError(f"the split {split!r} has no samples to trace")
    return Trace(torch.cat(logits, 1), torch.cat(labels), torch.cat(ids), split)
