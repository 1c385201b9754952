"""What of a run is compiled: the network, on whole batches of training only.

Every other size of batch, and evaluation, would be compiled again, which takes longer than it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offramp.train.recipe import Recipe


@contextmanager
def uncompiled(recipe: Recipe) -> Iterator[None]:
    """In this context, what is compiled runs as it was before."""
    if not recipe.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
