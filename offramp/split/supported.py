"""Models that cannot be cut whatever their forward pass does, and what to do about each."""

from torch import nn
from torch.nn.parameter import is_lazy

from offramp.meta_device import refuse_scripted

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes of PyTorch that wrap a model, and the attribute that holds it."""


def check_supported(model: nn.Module) -> None:
    """Refuse wrapped, compiled and unfinished models.

    Raises:
        ValueError: naming the class or layer and what to do.
    """
    kind = type(model).__name__
    if kind in _WRAPPERS and hasattr(model, _WRAPPERS[kind]):
        raise ValueError(f"a model within {kind} cannot be cut: give the model itself (model.{_WRAPPERS[kind]})")
    refuse_scripted(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"{name} of {kind} has no shape yet (nn.Lazy...): run the model once on a batch first")
    on_meta = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if on_meta and len(on_meta) < len(list(model.parameters())):
        raise ValueError(f"{kind} is incomplete: {on_meta[0]} is on the meta device while other weights are not")
