"""What a model takes and returns: the precision of its inputs, the logits in its output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn


class NoLogits(TypeError):
    """A model returns something else than logits."""


def logits_of(output: Any) -> Any:
    """The logits in the output of a model: itself, or the entry or attribute `logits` (transformers).

    Raises:
        NoLogits: if there are none.
    """
    if isinstance(output, Tensor | fx.Proxy):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    kind = f"a {type(output).__name__}"
    if isinstance(output, tuple | list):
        kind += f" of {len(output)}"
    elif isinstance(output, Mapping):
        kind += f" with {', '.join(map(str, output))}"
    raise NoLogits(
        f"the model returns {kind} instead of logits (B, C) or something with `logits`: wrap it in a module that "
        "returns the logits alone"
    )


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of the model's first weight, which its inputs must have."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
