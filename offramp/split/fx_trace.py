"""A model's forward pass as a graph: only the modules that must be looked into are, all others stay whole.

Every value is computed beside it on the meta device, for three sizes of batch: so conditions on shapes are decided as
in a real call, conditions on the batch are refused, and it is known afterwards what depends on the batch.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from offramp.meta_device import restored
from offramp.split.logits import dtype_of, logits_of
from offramp.split.random_state import random_state, restore_random_state
from offramp.split.tracer import PREFIX, Traced, Tracer, attribute, is_constant
from offramp.split.training_flags import mark_training
from offramp.split.untraceable import BY_HAND, Untraceable, where


def fx_trace(model: nn.Module, shape: tuple[int, int, int], opened: Collection[str]) -> Traced:
    """Trace a model in evaluation for inputs of a shape, looking into itself and the modules named in `opened`.

    Raises:
        Untraceable: naming the line that could not be traced.
    """
    with restored(model):
        model.eval()
        return _run(model, shape, opened)._replace(modes={False: _in_mode(model, True)})


def with_flags(traced: Traced, model: nn.Module, shape: tuple[int, int, int], opened: Collection[str]) -> Traced:
    """The same pass traced in training as well, so that flags that follow `self.training` do so in the graph.

    Raises:
        Untraceable: naming the line that could not be traced, or that behaves differently in training.
    """
    with restored(model):
        model.train()
        modes = {**traced.modes, True: _in_mode(model, False)}
        mark_training(traced, _run(model, shape, opened, measured=traced).graph, model)
    return traced._replace(modes=modes)


def _in_mode(model: nn.Module, training: bool) -> frozenset[str]:
    names = model.named_modules(remove_duplicate=False)
    return frozenset(name for name, part in names if name and part.training == training)


def _run(
    model: nn.Module, shape: tuple[int, int, int], opened: Collection[str], measured: Traced | None = None
) -> Traced:
    """Trace once, in the mode that the model is in; `measured` provides the values of a pass that was traced before."""
    tracer = Tracer({PREFIX + path for path in opened} | {"model"}, shape, dtype_of(model), measured)
    generators = random_state()
    with restored(model), torch.enable_grad():
        try:
            with tracer.patched():
                graph = tracer.trace(_Root(model))
        except Exception as error:
            raise _untraceable(model, tracer, error) from error
        finally:
            restore_random_state(generators)
    constants = {node.target: attribute(tracer.root, node.target) for node in graph.nodes if is_constant(node)}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix(PREFIX)
    ends = {path.removeprefix(PREFIX): node for path, node in tracer.ends.items() if path != "model"}
    return Traced(graph, tracer.values, ends, tracer.macs, constants, {})


def _untraceable(model: nn.Module, tracer: Tracer, error: Exception) -> Untraceable:
    path = (tracer.open[-1] if tracer.open else "model").removeprefix("model").lstrip(".")
    inside = f"{path} ({type(model.get_submodule(path)).__name__})" if path else type(model).__name__
    reason = " ".join(str(error).split())[:200]
    return Untraceable(f"{inside} cannot be traced: {where(error)}: {reason}; {BY_HAND}", path)


class _Root(nn.Module):
    """The model as a function of its inputs alone that returns logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return logits_of(self.model(inputs))
