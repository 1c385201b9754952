"""A model's forward pass as a graph: only the modules that must be looked into are, all others stay whole.

Every value is computed beside it on the meta device, for three sizes of batch: so conditions on shapes are decided as
in a real call, conditions on the batch are refused, and it is known afterwards what depends on the batch.
"""

import operator
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils.flop_counter import FlopCounterMode

from offramp.meta_device import restored, run_on_meta
from offramp.split.random_state import random_state, restore_random_state

BATCHES = (2, 3, 1)
_DEVICES = ("cpu", "cuda", "cpu")
"""What a tensor's device is for each size of batch, so that conditions on it are noticed."""
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")
_PREFIX = "model."


class Untraceable(ValueError):
    """A forward pass that cannot be written as a graph; `path` is the module in which tracing ended ("" the root)."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Traced(NamedTuple):
    """A forward pass: its graph, and what is known of every value in it.

    `values` holds each node's value on the meta device, one per size of batch in `BATCHES`; `ends` the node that
    returns a module's output, by the module's name; `macs` the multiply-adds of a node for one sample; `constants` the
    tensors that the pass created without inputs; `flags` says whether arguments that follow `self.training` do so in
    the graph; `modes` the modules that `model.train(mode)` leaves in the other mode, for both modes.
    """

    graph: fx.Graph
    values: dict[fx.Node, tuple[Any, ...]]
    ends: dict[str, fx.Node]
    macs: dict[fx.Node, int]
    constants: dict[str, Tensor]
    flags: bool
    modes: Mapping[bool, frozenset[str]]


def trace(model: nn.Module, shape: tuple[int, int, int], opened: Collection[str], *, flags: bool = True) -> Traced:
    """Trace a model for inputs of a shape, looking into itself and the modules named in `opened`.

    Args:
        flags: trace in training as well, so that flags that follow `self.training` do so in the graph.

    Raises:
        Untraceable: naming the line that could not be traced, or that behaves differently in training.
    """
    with restored(model):
        model.eval()
        modes = {False: _in_mode(model, True)}
        traced = _run(model, shape, opened)
        if flags:
            model.train()
            modes[True] = _in_mode(model, False)
            _mark_training(traced, _run(model, shape, opened, measured=traced).graph, model)
    return traced._replace(flags=flags, modes=modes)


def _in_mode(model: nn.Module, training: bool) -> frozenset[str]:
    names = model.named_modules(remove_duplicate=False)
    return frozenset(name for name, part in names if name and part.training == training)


def _run(
    model: nn.Module, shape: tuple[int, int, int], opened: Collection[str], measured: Traced | None = None
) -> Traced:
    """Trace once, in the mode that the model is in; `measured` provides the values of a pass that was traced before."""
    tracer = Tracer({_PREFIX + path for path in opened} | {"model"}, shape, dtype_of(model), measured)
    before = random_state()
    with restored(model), torch.enable_grad():
        try:
            with tracer.patched():
                graph = tracer.trace(_Root(model))
        except Exception as error:
            raise _untraceable(model, tracer, error) from error
        finally:
            restore_random_state(before)
    constants = {node.target: _attribute(tracer.root, node.target) for node in graph.nodes if _is_constant(node)}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix(_PREFIX)
    ends = {path.removeprefix(_PREFIX): node for path, node in tracer.ends.items() if path != "model"}
    return Traced(graph, tracer.values, ends, tracer.macs, constants, False, {})


def _untraceable(model: nn.Module, tracer: "Tracer", error: Exception) -> Untraceable:
    path = (tracer.open[-1] if tracer.open else "model").removeprefix("model").lstrip(".")
    inside = f"{path} ({type(model.get_submodule(path)).__name__})" if path else type(model).__name__
    reason = " ".join(str(error).split())[:200]
    return Untraceable(f"{inside} cannot be traced: {where(error)}: {reason}; {BY_HAND}", path)


BY_HAND = "cut elsewhere, or give the stages by hand (offramp.split.by_hand)"


class _Root(nn.Module):
    """The model as a function of its inputs alone that returns logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return logits_of(self.model(inputs))


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


class Tracer(fx.Tracer):
    """torch.fx's tracer with a value at hand for every proxy; conditions and counts are decided by it."""

    proxy_buffer_attributes = True

    def __init__(
        self, opened: set[str], shape: tuple[int, int, int], dtype: torch.dtype, measured: Traced | None = None
    ) -> None:
        super().__init__()
        self.opened, self.measured = opened, measured
        self.inputs = tuple(torch.empty((batch, *shape), dtype=dtype, device="meta") for batch in BATCHES)
        self.values: dict[fx.Node, tuple[Any, ...]] = {}
        self.ends: dict[str, fx.Node] = {}
        self.macs: dict[fx.Node, int] = {}
        self.open: list[str] = []
        self.before = iter(measured.graph.nodes if measured else ())
        self.evaluating = False
        self.random = random_state()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        return module_qualified_name not in self.opened

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the node of the module's output, and which module is being traced in case tracing ends here."""
        if self.evaluating:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        whole = self.is_leaf_module(m, path)
        if not whole:
            self.open.append(path)
        output = super().call_module(m, forward, args, kwargs)
        if not whole:
            self._check_random()
            self.open.pop()
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, fx.Proxy):
            self.ends[path] = first.node
            if isinstance(self.values[first.node][0], list) and first is output:
                return list(output)  # so that its items can be assigned
        return output

    def _check_random(self) -> None:
        """Refuse decisions by random numbers, which a graph would repeat in every pass."""
        if random_state() != self.random:
            raise fx.proxy.TraceError(
                "it draws random numbers outside of its layers (as layers dropped at random do), which a graph would "
                "freeze; switch that off"
            )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers become nodes, except while a value is computed."""
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that can be counted."""
        return _Valued(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        """Add a node and compute its value."""
        if not torch.is_grad_enabled():
            raise fx.proxy.TraceError("it computes without gradients (torch.no_grad), which a graph would lose")
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        if kind != "output":
            self._measure(node)
        return node

    def _measure(self, node: fx.Node) -> None:
        """The node's value; in the second pass, that of the node at the same place in the first."""
        twin = next(self.before, None)
        if self.measured and twin is not None and _alike(node, twin):
            self.values[node] = self.measured.values[twin]
            return
        self.before = iter(())
        before = random_state() if node.op == "call_module" else None
        self.evaluating = True
        try:
            with torch.no_grad():
                with FlopCounterMode(display=False) as counter:
                    first = self._value(node, 0)
                self.values[node] = (first, *(self._value(node, index) for index in range(1, len(BATCHES))))
            self.macs[node] = counter.get_total_flops() // (2 * BATCHES[0])
        finally:
            self.evaluating = False
            if before is not None:
                restore_random_state(before)

    def _value(self, node: fx.Node, index: int) -> Any:
        if node.op == "placeholder":
            return self.inputs[index]
        if node.op == "get_attr":
            return _on_meta(_attribute(self.root, str(node.target)))
        given = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n][index])
        if node.target in _LOOKS:
            return _look(node.target, given[0], index)
        args, kwargs = _on_meta(given)
        if node.op == "call_module":
            return run_on_meta(self.root.get_submodule(str(node.target)), *args, whole=True, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Within, functions that create tensors accept proxies as sizes, and autocast is noticed; undone afterwards.

        Neither looks for proxies as other functions do. Calls without proxies, as other threads make them, go through.
        """
        real = {name: getattr(torch, name) for name in _FACTORIES}
        enter = torch.autocast.__enter__
        try:
            for name, create in real.items():
                setattr(torch, name, self._making(create))
            torch.autocast.__enter__ = self._entering(enter)  # type: ignore[method-assign]
            yield
        finally:
            torch.autocast.__enter__ = enter  # type: ignore[method-assign]
            for name, create in real.items():
                setattr(torch, name, create)

    def _entering(self, enter: Callable[..., Any]) -> Callable[..., Any]:
        thread = threading.get_ident()

        def entering(context: Any) -> Any:
            if not self.evaluating and threading.get_ident() == thread:
                raise fx.proxy.TraceError("it computes within torch.autocast, which a graph would lose")
            return enter(context)

        return entering

    def _making(self, create: Callable[..., Any]) -> Callable[..., Any]:
        def creating(*args: Any, **kwargs: Any) -> Any:
            proxies: list[Any] = []
            map_aggregate((args, kwargs), lambda part: proxies.append(part) if isinstance(part, fx.Proxy) else None)
            if proxies and not self.evaluating:
                return self.create_proxy("call_function", create, args, kwargs)
            return create(*args, **kwargs)

        return creating

    def fixed(self, proxy: fx.Proxy, what: Callable[[Any], Any]) -> Any:
        """A property of a proxy's value that must be the same for every size of batch and every device."""
        values = [what(value) for value in self.values[proxy.node]]
        if any(other != values[0] for other in values):
            of_device = any(_is_device(node) for node in _ancestors(proxy.node))
            cause = "the device of the model" if of_device else "the number of samples in the batch"
            raise fx.proxy.TraceError(f"it depends on {cause}")
        return values[0]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition as a real call would."""
        return bool(self.fixed(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a tuple, shape or tensor."""
        proxy: Any = obj
        return iter([proxy[index] for index in range(self.fixed(obj, len))])


class _Valued(fx.Proxy):
    """A proxy that knows its length and, where it is a number independent of the batch, its value."""

    def __len__(self) -> int:
        return int(self.tracer.fixed(self, len))  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return int(self.tracer.fixed(self, int))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.fixed(self, float))  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(self.tracer.values[self.node][0], Tensor):  # type: ignore[attr-defined]
            raise fx.proxy.TraceError("it assigns an item of what a layer returns")
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class _Attribute(fx.proxy.Attribute, _Valued):
    """An attribute of a proxy, such as its shape."""


_LOOKS = (getattr, operator.eq, operator.ne, operator.contains)
"""Functions whose arguments may be devices, and differ between them."""
_DEVICE_ATTRIBUTES = ("device", "is_cuda", "is_cpu")


def _look(function: Any, args: tuple[Any, ...], index: int) -> Any:
    """The value of one of `_LOOKS`; a tensor is on another device for each size of batch."""
    if function is getattr and isinstance(args[0], Tensor) and args[1] in _DEVICE_ATTRIBUTES:
        device = torch.device(_DEVICES[index])
        return device if args[1] == "device" else args[1] == f"is_{device.type}"
    return function(*args)


def _is_device(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in _DEVICE_ATTRIBUTES


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that its value is computed from."""
    reached, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            todo += node.all_input_nodes
    return reached


def _on_meta(value: Any) -> Any:
    """A tensor or device as one on the meta device; lists and dictionaries of them as ones that may be changed."""
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, Tensor):
        return value if value.is_meta else torch.empty_like(value, device="meta").detach()
    if isinstance(value, list):
        return [_on_meta(each) for each in value]
    if isinstance(value, dict):
        return {key: _on_meta(each) for key, each in value.items()}
    if type(value) is tuple:
        return tuple(map(_on_meta, value))
    return value


def _attribute(root: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), root)


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" and not str(node.target).startswith(_PREFIX)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of the model's first weight, which its inputs must have."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _alike(node: fx.Node, twin: fx.Node) -> bool:
    return node.op == twin.op and str(node.target).removeprefix(_PREFIX) == str(twin.target).removeprefix(_PREFIX)


def _mark_training(traced: Traced, in_training: fx.Graph, model: nn.Module) -> None:
    """Let every argument that follows `self.training` follow it in the graph, too.

    A graph of plain values would keep the mode in which it was traced (F.dropout(x, training=self.training)).

    Raises:
        Untraceable: if the two passes differ in more than such arguments.
    """
    graph = traced.graph
    pairs = list(zip(graph.nodes, in_training.nodes, strict=False))
    if len(graph.nodes) != len(in_training.nodes) or not all(_alike(*pair) for pair in pairs):
        raise Untraceable(_different(model), "")
    merge = _Merge(traced, dict(zip(in_training.nodes, graph.nodes, strict=True)), _different(model))
    for node, twin in pairs:
        with graph.inserting_before(node):
            node.args = tuple(merge(*pair) for pair in zip(node.args, twin.args, strict=True))
            node.kwargs = {key: merge(node.kwargs[key], twin.kwargs.get(key)) for key in node.kwargs}


class _Merge(NamedTuple):
    """Merges an argument in evaluation with the same in training; `same` maps nodes of the second graph to the first's.

    `different` is the error if they cannot be merged.
    """

    traced: Traced
    same: Mapping[fx.Node, fx.Node]
    different: str

    def __call__(self, plain: Any, training: Any) -> Any:
        if isinstance(plain, tuple | list) and isinstance(training, tuple | list) and len(plain) == len(training):
            return type(plain)([self(*pair) for pair in zip(plain, training, strict=True)])
        if isinstance(plain, slice) and isinstance(training, slice):
            ends = zip(*((each.start, each.stop, each.step) for each in (plain, training)), strict=True)
            return slice(*[self(*pair) for pair in ends])
        if isinstance(plain, bool) and isinstance(training, bool) and plain != training:
            return self.flag(training)
        if isinstance(training, fx.Node):
            training = self.same[training]
        if plain is not training and plain != training:
            raise Untraceable(self.different, "")
        return plain

    def flag(self, training: bool) -> fx.Node:
        """A node for `self.training`, or its opposite."""
        graph, values = self.traced.graph, self.traced.values
        flag = graph.create_node("get_attr", "training")
        values[flag] = (False,) * len(BATCHES)
        if training:
            return flag
        opposite = graph.call_function(operator.not_, (flag,))
        values[opposite] = (True,) * len(BATCHES)
        return opposite


def _different(model: nn.Module) -> str:
    if getattr(model, "aux_logits", False):
        return (
            f"{type(model).__name__} has another classifier in training (aux_logits), which the cut form would lose: "
            "build it with aux_logits=False"
        )
    return (
        "the model's forward computes something else in training than in evaluation, in a module that an exit cuts; "
        + BY_HAND
    )


def where(error: BaseException) -> str:
    """The innermost line of the model's own code: `file.py, line 12: x = x[mask]`."""
    ours = tuple(str(Path(file).parent) for file in (torch.__file__, jaxtyping.__file__, __file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    if not frames:
        return "in its forward"
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: `{frames[-1].line}`"
