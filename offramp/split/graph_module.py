"""A subgraph of a traced model as a module; its weights keep the names that they have in the model."""

import ast
import linecache
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from torch import Tensor, fx, nn

from offramp import digests
from offramp.split.tracer import Traced


@dataclass(frozen=True, eq=False)
class Plan:
    """What a subgraph computes and which of the model's modules and tensors it holds, without the weights themselves.

    Args:
        run: (module, state) -> state.
        kind: the class of its heaviest module, for people.
        modules: names of the modules that it calls.
        tensors: names of the parameters and buffers that it reads, and whether they belong into its state_dict.
        constants: tensors that the model created without inputs while it was traced.
        modes: for both modes, the modules that the model's own `train(mode)` leaves in the other one.
    """

    forward: Callable[["Subgraph", Any], Any]
    kind: str
    modules: tuple[str, ...]
    tensors: Mapping[str, bool]
    constants: Mapping[str, Tensor]
    modes: Mapping[bool, tuple[str, ...]]


def plan(graph: fx.Graph, model: nn.Module, borrowed: set[str], traced: Traced) -> Plan:
    """Compile a graph of one input, `state`, whose modules and tensors are named as in the model.

    Args:
        borrowed: buffers that another subgraph keeps in its state_dict.
    """
    constants = traced.constants
    modules = tuple(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"))
    reads = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
    tensors = {
        name: _kept(model, name) and name not in borrowed for name in reads if name not in (*constants, "training")
    }
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in modules}
    heaviest = max(sizes, key=lambda name: sizes[name]) if sizes else ""
    kind = type(model.get_submodule(heaviest)).__name__ if heaviest else "Function"
    own_constants = {name: constants[name] for name in reads if name in constants}
    held = tuple(f"{name}." for name in modules)
    modes = {mode: tuple(n for n in names if f"{n}.".startswith(held)) for mode, names in traced.modes.items()}
    return Plan(_compile(graph, {*modules}), kind, modules, tensors, own_constants, modes)


def _compile(graph: fx.Graph, modules: Collection[str]) -> Callable[["Subgraph", Any], Any]:
    """The graph as a Python function; its source is kept where tracebacks look for it."""
    code = graph.python_code("self")
    above = {name.rsplit(".", depth)[0] for name in modules for depth in range(name.count(".") + 1)}
    source = ast.unparse(_Direct(above).visit(ast.parse(code.src)))
    name = f"<offramp.split subgraph {digests.of_bytes(source.encode())}>"  # the same source takes one place
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = dict(code.globals)
    exec(compile(source, name, "exec"), names)
    forward: Callable[[Subgraph, Any], Any] = names["forward"]
    return forward


class _Direct(ast.NodeTransformer):
    """Modules looked up in the dictionaries that hold them: an attribute that Python does not find at once is slow.

    `getattr(self.features, "0")` becomes `self._modules["features"]._modules["0"]`, which costs a fiftieth.

    Args:
        modules: the names of all modules that are called, and of those that hold them.
    """

    def __init__(self, modules: Collection[str]) -> None:
        self.modules = modules

    def visit(self, node: ast.AST) -> Any:
        path = _path(node)
        if path not in self.modules:
            return self.generic_visit(node)
        lookup: ast.expr = ast.Name("self", ast.Load())
        for name in path.split("."):
            table = ast.Attribute(lookup, "_modules", ast.Load())
            lookup = ast.Subscript(table, ast.Constant(name), ast.Load())
        return lookup


def _path(node: ast.AST) -> str:
    """The path under `self` that an expression reads, as `features.0`; "" for another expression."""
    match node:
        case ast.Attribute(value=owner, attr=name):
            pass
        case ast.Call(func=ast.Name("getattr"), args=[owner, ast.Constant(str(name))]):
            pass
        case _:
            return ""
    if isinstance(owner, ast.Name) and owner.id == "self":
        return name
    above = _path(owner)
    return f"{above}.{name}" if above else ""


class Subgraph(nn.Module):
    """A part of a model's graph. Its modules are the model's own, under the names that they have there."""

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        super().__init__()
        self.plan = plan
        for name in plan.modules:
            _put(self, name, model.get_submodule(name))
        for name, kept in plan.tensors.items():
            put_tensor(self, name, _find(model, name), kept)
        for name, constant in plan.constants.items():
            put_tensor(self, name, constant, False)

    @property
    def block_kind(self) -> str:
        """The class of the heaviest module in it."""
        return self.plan.kind

    def forward(self, state: Any) -> Any:
        """The state (or the head's logits, feature and map) that this part of the model computes from a state."""
        return self.plan.forward(self, state)

    def train(self, mode: bool = True) -> "Subgraph":
        """Set the mode, except for modules that the model's own `train` keeps in the other one (frozen norms)."""
        super().train(mode)
        for name in self.plan.modes.get(mode, ()):
            self.get_submodule(name).training = not mode
        return self


class Rebuilder:
    """Builds newly initialised subgraphs, from models that are constructed again.

    Copies would keep what has no `reset_parameters` (layer scale, tables of position biases), and would not know how
    the model initialises what has. A model is constructed only when a subgraph is requested that was returned before;
    of each model, only the subgraphs that are likely to be requested are kept.

    Args:
        make: constructs the model.
        plans: of the subgraphs that are likely to be requested.
    """

    def __init__(self, make: Callable[[], nn.Module], plans: Sequence[Plan]) -> None:
        self.make, self.plans = make, plans
        self.unused: dict[Plan, Subgraph] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rebuilder":
        return self

    def build(self, plan: Plan) -> Subgraph:
        """A new subgraph of this plan, shared with nobody."""
        if plan not in self.unused:
            model = self.make()
            self.unused = {each: Subgraph(each, model) for each in (*self.plans, plan)}
        subgraph = self.unused.pop(plan)
        self.attach(subgraph)
        return subgraph

    def attach(self, subgraph: Subgraph) -> None:
        """Let `offramp.net.fresh` build the subgraph again by this."""
        subgraph.construct_fresh = partial(self.build, subgraph.plan)  # type: ignore[assignment]


def put_tensor(module: nn.Module, path: str, tensor: Tensor, persistent: bool) -> None:
    """Register a parameter or buffer under its name in the model; `persistent`: in the state_dict."""
    *above, name = path.split(".")
    owner = reduce(_container, above, module)
    if name in owner._parameters or name in owner._buffers:
        return
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor, persistent=persistent)


def _put(parent: nn.Module, path: str, module: nn.Module) -> None:
    *above, name = path.split(".")
    reduce(_container, above, parent).register_module(name, module)


def _container(owner: nn.Module, name: str) -> nn.Module:
    if name not in owner._modules:
        owner.register_module(name, nn.Module())
    container = owner._modules[name]
    assert container is not None
    return container


def _kept(model: nn.Module, path: str) -> bool:
    above, _, name = path.rpartition(".")
    return name not in model.get_submodule(above)._non_persistent_buffers_set


def _find(model: nn.Module, path: str) -> Tensor:
    above, _, name = path.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(above), name)
    return tensor
