"""What of a run is compiled: the network and the losses, on whole batches of training only.

Every other size of batch, and evaluation, would be compiled again, which takes longer than it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from offramp.methods._method import Method
from offramp.outputs import Batch, ExitOutputs
from offramp.protocols import Objective, Progress, Terms
from offramp.train.recipe import Recipe
from offramp.train.static_step import captured_for_each_epoch


def compiled_objective(method: Method, recipe: Recipe) -> Objective | None:
    """The method's objective, compiled; None if it is not to be.

    Several processes communicate in it, and one whose loss weights change over the run without `tensor_progress` would
    be compiled again for every epoch.
    """
    if not recipe.compile or recipe.devices > 1 or captured_for_each_epoch(method):
        return None
    objective = method.objective

    def losses(outputs: ExitOutputs, batch: Batch, progress: Progress) -> Terms:
        return objective(outputs, batch, progress)

    return cast(Objective, torch.compile(losses))


@contextmanager
def uncompiled(recipe: Recipe) -> Iterator[None]:
    """In this context, what is compiled runs as it was before."""
    if not recipe.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
