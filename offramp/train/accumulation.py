"""A batch that is too large for memory: its gradients are added up over parts of it before the optimizer's step."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from offramp.losses.distributed import weighing, weight
from offramp.methods._method import Method, Phase
from offramp.outputs import Batch
from offramp.protocols import Terms
from offramp.step import StepContext

Step = Callable[[StepContext, Batch], Terms]


def why_not(method: Method, phases: Sequence[Phase]) -> str:
    """Why a method's batches cannot be divided; nothing if they can.

    Args:
        phases: those of the run.
    """
    if method.step is not None or any(phase.step is not None for phase in phases):
        return "this method has steps of its own, which need the whole batch"
    return f"this method needs the whole batch: {method.whole_batch}" if method.whole_batch else ""


def micro_batches(batch: Batch, number: int) -> list[Batch]:
    """The batch of this process in `number` parts, which differ by one sample at most.

    They are fewer, down to one, if a part of any process would have one sample, on which a batch norm cannot train.
    """
    size = len(batch.ids)
    smallest = int(size / weight() + 1e-6)  # of the processes' batches, which differ by one sample at most
    number = max(1, min(number, smallest // 2))
    bounds = [size * part // number for part in range(number + 1)]
    return [Batch(*(tensor[first:last] for tensor in batch)) for first, last in itertools.pairwise(bounds)]


def accumulated(take: Step, context: StepContext, batch: Batch, number: int) -> Terms:
    """One optimizer step on a batch by `number` passes through the network; returns the terms of the batch, detached.

    Equal to the step on the whole batch, to rounding, for losses that are means or sums over samples. Batch norms see a
    part at a time. Several processes average their gradients once, after the last part.

    Args:
        take: takes the step on a part.
    """
    if number == 1:
        return take(context, batch)
    share, terms = weight(), list[Terms]()
    for part in (pieces := micro_batches(batch, number)):
        more = len(terms) + 1 < len(pieces)
        alone = (
            context.fabric.no_backward_sync(context.net) if more and context.fabric.world_size > 1 else nullcontext()
        )
        with weighing(share * len(part.ids) / len(batch.ids)), alone:
            terms.append(take(dataclasses.replace(context, more_follows=more), part))
    return {name: sum(each[name] for each in terms) for name in terms[0]}  # type: ignore[misc]
