"""torch.fx's tracer with every value computed beside the graph, on the meta device and for three sizes of batch."""

import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils.flop_counter import FlopCounterMode

from offramp.meta_device import run_on_meta
from offramp.split.random_state import random_state, restore_random_state

BATCHES = (2, 3, 1)
"""Sizes of the batches for which values are computed."""
_DEVICES = ("cpu", "cuda", "cpu")
"""What a tensor's device is for each size of batch, so that conditions on it are noticed."""
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")
PREFIX = "model."
"""Names of modules while they are traced begin with this."""


class Traced(NamedTuple):
    """A forward pass: its graph, and what is known of every value in it.

    `values` holds each node's value on the meta device, one per size of batch in `BATCHES`; `ends` the node that
    returns a module's output, by the module's name; `macs` the multiply-adds of a node for one sample; `constants` the
    tensors that the pass created without inputs; `modes` the modules that `model.train(mode)` leaves in the other mode,
    for both modes.
    """

    graph: fx.Graph
    values: dict[fx.Node, tuple[Any, ...]]
    ends: dict[str, fx.Node]
    macs: dict[fx.Node, int]
    constants: dict[str, Tensor]
    modes: Mapping[bool, frozenset[str]]


class Tracer(fx.Tracer):
    """torch.fx's tracer with a value for every proxy; conditions and counts are decided by it."""

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
        leaf = self.is_leaf_module(m, path)
        if not leaf:
            self.open.append(path)
        output = super().call_module(m, forward, args, kwargs)
        if not leaf:
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
                "freeze; disable that"
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
        if self.measured and twin is not None and same_call(node, twin):
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
            return _on_meta(attribute(self.root, str(node.target)))
        inputs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n][index])
        if node.target in _INSPECTIONS:
            return _inspect(node.target, inputs[0], index)
        args, kwargs = _on_meta(inputs)
        if node.op == "call_module":
            return run_on_meta(self.root.get_submodule(str(node.target)), *args, **kwargs)
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
                setattr(torch, name, self._accepting_proxies(create))
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

    def _accepting_proxies(self, create: Callable[..., Any]) -> Callable[..., Any]:
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
    """A proxy that knows its length and, if it is a number independent of the batch, its value."""

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


_INSPECTIONS = (getattr, operator.eq, operator.ne, operator.contains)
"""Functions whose arguments may be devices, and differ between them."""
_DEVICE_ATTRIBUTES = ("device", "is_cuda", "is_cpu")


def _inspect(function: Any, args: tuple[Any, ...], index: int) -> Any:
    """The value of one of `_INSPECTIONS`; a tensor is on another device for each size of batch."""
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


def attribute(root: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    return reduce(getattr, path.split("."), root)


def is_constant(node: fx.Node) -> bool:
    """Whether a node is a tensor that the pass created without inputs."""
    return node.op == "get_attr" and not str(node.target).startswith(PREFIX)


def same_call(node: fx.Node, twin: fx.Node) -> bool:
    """Whether two nodes call the same, whatever their arguments."""
    return node.op == twin.op and str(node.target).removeprefix(PREFIX) == str(twin.target).removeprefix(PREFIX)
