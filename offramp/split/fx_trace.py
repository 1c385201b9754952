"""A model's forward pass as a graph: only the modules that must be looked into are, all others stay whole.

Every value is computed beside it on the meta device, for two sizes of batch: so conditions on shapes are decided as in
a real call, and it is known afterwards what depends on the batch.
"""

import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate
from torch.utils.flop_counter import FlopCounterMode

BATCHES = (2, 3)
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")
_PREFIX = "model."


class Untraceable(ValueError):
    """A forward pass that cannot be written as a graph; `path` is the module in which tracing ended ("" the root)."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Traced(NamedTuple):
    """A forward pass: its graph, and what is known of every value in it.

    `values` holds each node's value on the meta device, one per size of batch in `BATCHES`; `ends` the node that a
    module's call came to, by the module's name; `macs` the multiply-adds of a node for one sample; `constants` the
    tensors that the pass made out of nothing; `flags` says whether what follows `self.training` do so in the graph.
    """

    graph: fx.Graph
    values: dict[fx.Node, tuple[Any, ...]]
    ends: dict[str, fx.Node]
    macs: dict[fx.Node, int]
    constants: dict[str, Tensor]
    flags: bool


def trace(model: nn.Module, shape: tuple[int, int, int], opened: Collection[str], *, flags: bool = True) -> Traced:
    """Trace a model for inputs of a shape, looking into itself and the modules named in `opened`.

    Args:
        flags: trace in training as well, so that flags that follow `self.training` do so in the graph.

    Raises:
        Untraceable: naming the line that could not be traced, or that behaves differently in training.
    """
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        traced = _run(model, shape, opened)
        if flags:
            model.train()
            _mark_training(traced.graph, _run(model, shape, opened, measured=traced).graph)
    finally:
        for part, mode in modes:
            part.training = mode
    return traced._replace(flags=flags)


def _run(
    model: nn.Module, shape: tuple[int, int, int], opened: Collection[str], measured: Traced | None = None
) -> Traced:
    """Trace once, in the mode that the model is in; `measured` lends the values of a pass that was traced before."""
    tracer = Tracer({_PREFIX + path for path in opened} | {"model"}, shape, _dtype(model), measured)
    with torch.no_grad():
        try:
            with tracer.factories():
                graph = tracer.trace(_Root(model))
        except Exception as error:
            line, path = where(error), (tracer.open[-1] if tracer.open else "model").removeprefix("model").lstrip(".")
            inside = f"{path} ({type(model.get_submodule(path)).__name__})" if path else type(model).__name__
            raise Untraceable(
                f"{inside} cannot be traced: {line}: {' '.join(str(error).split())[:200]}; cut elsewhere, or give the "
                "stages by hand (offramp.split.by_hand)",
                path,
            ) from error
    constants = {node.target: _attribute(tracer.root, node.target) for node in graph.nodes if _is_constant(node)}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix(_PREFIX)
    ends = {path.removeprefix(_PREFIX): node for path, node in tracer.ends.items() if path != "model"}
    return Traced(graph, tracer.values, ends, tracer.macs, constants, False)


class _Root(nn.Module):
    """The model as a function of its inputs alone that answers logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return logits_of(self.model(inputs))


def logits_of(answer: Any) -> Any:
    """The logits in what a model answers: itself, or the part that is called so (transformers).

    Raises:
        TypeError: if there are none.
    """
    if isinstance(answer, Tensor | fx.Proxy):
        return answer
    if hasattr(answer, "logits"):
        return answer.logits
    raise TypeError(f"the model answers {type(answer).__name__}, neither logits nor something with `logits`")


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

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        return module_qualified_name not in self.opened

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note what the call comes to, and where tracing stands in case it ends here."""
        if self.evaluating:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        whole = self.is_leaf_module(m, path)
        if not whole:
            self.open.append(path)
        answer = super().call_module(m, forward, args, kwargs)
        if not whole:
            self.open.pop()
        first = answer[0] if isinstance(answer, tuple | list) and answer else answer
        if isinstance(first, fx.Proxy):
            self.ends[path] = first.node
        return answer

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers become nodes, except while a value is computed."""
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that can be counted."""
        return _Valued(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        """Add a node and compute its value."""
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
        self.evaluating = True
        try:
            with FlopCounterMode(display=False) as counter:
                first = self._value(node, 0)
            self.values[node] = (first, *(self._value(node, index) for index in range(1, len(BATCHES))))
            self.macs[node] = counter.get_total_flops() // (2 * BATCHES[0])
        finally:
            self.evaluating = False

    def _value(self, node: fx.Node, index: int) -> Any:
        if node.op == "placeholder":
            return self.inputs[index]
        if node.op == "get_attr":
            return _meta(_attribute(self.root, str(node.target)))
        args: Any = map_aggregate(fx.node.map_arg(node.args, lambda n: self.values[n][index]), _meta)
        kwargs: Any = map_aggregate(fx.node.map_arg(node.kwargs, lambda n: self.values[n][index]), _meta)
        if node.op == "call_module":
            return evaluate(self.root.get_submodule(str(node.target)), args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    @contextmanager
    def factories(self) -> Iterator[None]:
        """Let functions that make tensors of a size take proxies; they do not look for them as other functions do."""
        real = {name: getattr(torch, name) for name in _FACTORIES}
        try:
            for name, make in real.items():
                setattr(torch, name, self._making(make))
            yield
        finally:
            for name, make in real.items():
                setattr(torch, name, make)

    def _making(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            proxies: list[Any] = []
            map_aggregate((args, kwargs), lambda part: proxies.append(part) if isinstance(part, fx.Proxy) else None)
            if proxies and not self.evaluating:
                return self.create_proxy("call_function", make, args, kwargs)
            return make(*args, **kwargs)

        return made

    def fixed(self, proxy: fx.Proxy, what: Callable[[Any], Any]) -> Any:
        """A property of a proxy's value that must be the same for every size of batch."""
        found = [what(value) for value in self.values[proxy.node]]
        if any(other != found[0] for other in found):
            raise fx.proxy.TraceError("it depends on the number of samples in the batch")
        return found[0]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition as a real call would."""
        return bool(self.fixed(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a tuple, shape or tensor."""
        parts: Any = obj
        return iter([parts[index] for index in range(self.fixed(obj, len))])


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


class _Attribute(fx.proxy.Attribute, _Valued):
    """An attribute of a proxy, such as its shape."""


def evaluate(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What the module answers on the meta device in evaluation mode; it stays as it is."""
    tensors = {name: _meta(t) for group in (module.named_parameters(), module.named_buffers()) for name, t in group}
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        return functional_call(module, tensors, args, kwargs)
    finally:
        for part, mode in modes:
            part.training = mode


def _meta(value: Any) -> Any:
    return (
        torch.empty_like(value, device="meta") if isinstance(value, Tensor) and value.device.type != "meta" else value
    )


def _attribute(root: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), root)


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" and not str(node.target).startswith(_PREFIX)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _alike(node: fx.Node, twin: fx.Node) -> bool:
    return node.op == twin.op and str(node.target).removeprefix(_PREFIX) == str(twin.target).removeprefix(_PREFIX)


def _mark_training(graph: fx.Graph, in_training: fx.Graph) -> None:
    """Make every flag that follows `self.training` follow it in the graph, too.

    A graph of plain values would keep the mode in which it was traced (F.dropout(x, training=self.training)).

    Raises:
        Untraceable: if the two passes differ in more than flags.
    """
    pairs = list(zip(graph.nodes, in_training.nodes, strict=False))
    if len(graph.nodes) != len(in_training.nodes) or not all(_alike(*pair) for pair in pairs):
        raise Untraceable(_DIFFERENT, "")
    same = dict(zip(in_training.nodes, graph.nodes, strict=True))
    for node, twin in pairs:
        with graph.inserting_before(node):
            node.args = tuple(_merge(graph, *pair, same) for pair in zip(node.args, twin.args, strict=True))
            node.kwargs = {key: _merge(graph, node.kwargs[key], twin.kwargs.get(key), same) for key in node.kwargs}


def _merge(graph: fx.Graph, plain: Any, training: Any, same: dict[fx.Node, fx.Node]) -> Any:
    if isinstance(plain, tuple | list) and isinstance(training, tuple | list) and len(plain) == len(training):
        return type(plain)([_merge(graph, *pair, same) for pair in zip(plain, training, strict=True)])
    if isinstance(plain, slice) and isinstance(training, slice):
        ends = zip((plain.start, plain.stop, plain.step), (training.start, training.stop, training.step), strict=True)
        return slice(*[_merge(graph, *pair, same) for pair in ends])
    if isinstance(plain, bool) and isinstance(training, bool) and plain != training:
        flag = graph.create_node("get_attr", "training")
        return flag if training else graph.call_function(_negate, (flag,))
    if isinstance(training, fx.Node):
        training = same[training]
    if plain is not training and plain != training:
        raise Untraceable(_DIFFERENT, "")
    return plain


_DIFFERENT = (
    "the model's forward computes something else in training than in evaluation, in a module that an exit cuts; cut "
    "elsewhere, or give the stages by hand (offramp.split.by_hand)"
)


def _negate(flag: bool) -> bool:
    return not flag


def where(error: BaseException) -> str:
    """The innermost line of the model's own code: `file.py, line 12: x = x[mask]`."""
    ours = tuple(str(Path(file).parent) for file in (torch.__file__, jaxtyping.__file__, __file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    if not frames:
        return "in its forward"
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: `{frames[-1].line}`"
