"""A piece of a traced model as a module: it runs its piece of the graph and keeps the model's names for its weights."""

import ast
import linecache
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import count
from typing import Any

from torch import Tensor, fx, nn

_number = count()


@dataclass(frozen=True, eq=False)
class Plan:
    """What a part computes and which of the model's modules and tensors it holds, without the weights themselves.

    Args:
        run: (part, state) -> state.
        kind: the class of its heaviest module, for people.
        modules: names of the modules that it calls.
        tensors: names of the parameters and buffers that it reads, and whether they belong into its state_dict.
        constants: tensors that the model made out of nothing while it was traced.
    """

    run: Callable[["Part", Any], Any]
    kind: str
    modules: tuple[str, ...]
    tensors: Mapping[str, bool]
    constants: Mapping[str, Tensor]


def plan(graph: fx.Graph, model: nn.Module, borrowed: set[str], constants: Mapping[str, Tensor]) -> Plan:
    """Compile a graph of one input, `state`, whose modules and tensors are named as in the model.

    Args:
        borrowed: buffers that another part keeps in its state_dict.
    """
    modules = tuple(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"))
    reads = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
    tensors = {
        name: _kept(model, name) and name not in borrowed for name in reads if name not in (*constants, "training")
    }
    weigh = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in modules}
    heaviest = max(weigh, key=lambda name: weigh[name]) if weigh else ""
    kind = type(model.get_submodule(heaviest)).__name__ if heaviest else "Function"
    own = {name: constants[name] for name in reads if name in constants}
    return Plan(_compile(graph, {*modules}), kind, modules, tensors, own)


def _compile(graph: fx.Graph, modules: Collection[str]) -> Callable[["Part", Any], Any]:
    """The graph as a Python function; its source is kept where tracebacks look for it."""
    code = graph.python_code("self")
    above = {name.rsplit(".", depth)[0] for name in modules for depth in range(name.count(".") + 1)}
    source = ast.unparse(_Direct(above).visit(ast.parse(code.src)))
    name = f"<offramp.split part {next(_number)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = dict(code.globals)
    exec(compile(source, name, "exec"), space)
    run: Callable[[Part, Any], Any] = space["forward"]
    return run


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
        found: ast.expr = ast.Name("self", ast.Load())
        for name in path.split("."):
            held = ast.Attribute(found, "_modules", ast.Load())
            found = ast.Subscript(held, ast.Constant(name), ast.Load())
        return found


def _path(node: ast.AST) -> str:
    """The path under `self` that an expression reads, as `features.0`; "" where it is another expression."""
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


class Part(nn.Module):
    """A piece of a model. Its modules are the model's own, under the names that they have there."""

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
        """What this piece of the model makes of a state."""
        return self.plan.run(self, state)


class Donor:
    """Where newly initialised parts come from: models made again, of which only what is likely to be asked for stays.

    Copies would keep what has no `reset_parameters` (layer scale, tables of position biases), and would not know how
    the model initialises what has. A model is built only when a part is asked for that was given away already.

    Args:
        make: builds the model.
        plans: of the parts that are likely to be asked for.
    """

    def __init__(self, make: Callable[[], nn.Module], plans: Sequence[Plan]) -> None:
        self.make, self.plans = make, plans
        self.spare: dict[Plan, Part] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Donor":
        return self

    def give(self, plan: Plan) -> Part:
        """A new part of this plan, shared with nobody."""
        if plan not in self.spare:
            model = self.make()
            self.spare = {each: Part(each, model) for each in (*self.plans, plan)}
        part = self.spare.pop(plan)
        self.offer(part)
        return part

    def offer(self, part: Part) -> None:
        """Let `offramp.net.fresh` find its way from a part to here."""
        part.construct_fresh = partial(self.give, part.plan)  # type: ignore[assignment]


def put_tensor(part: nn.Module, path: str, tensor: Tensor, kept: bool) -> None:
    """Register a parameter or buffer under its name in the model; `kept`: in the state_dict."""
    *above, name = path.split(".")
    owner = reduce(_container, above, part)
    if name in owner._parameters or name in owner._buffers:
        return
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor, persistent=kept)


def _put(part: nn.Module, path: str, module: nn.Module) -> None:
    *above, name = path.split(".")
    reduce(_container, above, part).register_module(name, module)


def _container(owner: nn.Module, name: str) -> nn.Module:
    if name not in owner._modules:
        owner.register_module(name, nn.Module())
    found = owner._modules[name]
    assert found is not None
    return found


def _kept(model: nn.Module, path: str) -> bool:
    above, _, name = path.rpartition(".")
    return name not in model.get_submodule(above)._non_persistent_buffers_set


def _find(model: nn.Module, path: str) -> Tensor:
    above, _, name = path.rpartition(".")
    found: Tensor = getattr(model.get_submodule(above), name)
    return found
