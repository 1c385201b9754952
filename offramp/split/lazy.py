"""Lazy evaluation: what an exit does not need is postponed to the first later stage that needs it, or never computed.

Source: Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification", ICLR 2018, section 4;
here for any network whose stages torch.fx can trace.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from offramp.meta_device import blank, run_on_meta
from offramp.net import MultiExitNet
from offramp.outputs import Carry, State
from offramp.protocols import is_chained
from offramp.split.metered import measured

WORTHWHILE = 0.01
"""The share of some exit's operations that has to be saved, else the network stays as it is."""


def lazy(net: MultiExitNet, shape: tuple[int, int, int]) -> MultiExitNet:
    """The network for inference, with every operation in the first stage whose exit, or a later stage, needs it.

    Logits are identical. A state of the result is a tuple of all tensors that later stages or exits read; modules are
    shared with `net`, no weight is copied.

    Args:
        net: in eval mode.
        shape: (channels, height, width) of the inputs.
    Returns:
        `net` itself if no exit would save `WORTHWHILE` of its operations, or its stages cannot be traced.
    """
    try:
        if not _has_several_tensors(net, shape):
            return net
        trunk = _trunk(net, shape)
        plans = _postpone(trunk)
        if plans is None:
            return net
        return _assemble(net, trunk, plans).eval()
    except (_NotPostponable, fx.proxy.TraceError, TypeError, RuntimeError, AttributeError):
        return net  # control flow, or a forward pass that torch.fx does not follow


class _NotPostponable(ValueError):
    """A network whose operations cannot be postponed: it stays as it is."""


def _has_several_tensors(net: MultiExitNet, shape: tuple[int, int, int]) -> bool:
    """Whether some state is a tuple; where each is one tensor, its exit needs everything that it is computed from."""
    state: Any = blank(net, shape)
    for stage in net.stages:
        state = run_on_meta(stage, state)
        if isinstance(state, tuple) and len(state) > 1:
            return True
    return False


class Trunk(NamedTuple):
    """All stages as one graph.

    Attributes:
        stages: of the network; graph: from `inputs`, its targets are names within `stages`.
        states: for each stage the nodes of its state's tensors; single: whether the state is one tensor.
        needed: for each exit the positions in that state that its branch reads.
        macs: multiply-adds of every node; batched: nodes whose value is a tensor with the batch first.
    """

    stages: nn.ModuleList
    graph: fx.Graph
    states: list[tuple[fx.Node, ...]]
    single: list[bool]
    needed: list[tuple[int, ...]]
    macs: dict[fx.Node, int]
    batched: set[fx.Node]


class StagePlan(NamedTuple):
    """What one new stage reads from the one before, computes, and passes on, each in the order of the graph."""

    reads: list[fx.Node]
    computes: list[fx.Node]
    hands_on: list[fx.Node]


class _LeafTracer(fx.Tracer):
    """Looks into everything but PyTorch's own layers and those derived from them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential | nn.ModuleList):
            return False
        bases = (base for base in type(m).__mro__ if base is not nn.Module)
        return any(base.__module__.startswith("torch.nn.") for base in bases)


def _trunk(net: MultiExitNet, shape: tuple[int, int, int]) -> Trunk:
    graph = fx.Graph()
    state: tuple[fx.Node, ...] = (graph.placeholder("inputs"),)
    single, states, singles = True, [], []
    for number, stage in enumerate(net.stages):
        part = _traced(stage, len(state), single)
        values: dict[fx.Node, Any] = dict(
            zip((node for node in part.nodes if node.op == "placeholder"), state, strict=True)
        )
        for node in part.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = f"{number}.{str(node.target).removeprefix('stage.')}"
        result = graph.graph_copy(part, values)
        single = isinstance(result, fx.Node)
        state = (result,) if isinstance(result, fx.Node) else tuple(result)  # type: ignore[arg-type]
        if not all(isinstance(node, fx.Node) for node in state):
            raise _NotPostponable("a state that is not made of tensors")
        states.append(state)
        singles.append(single)
    graph.output(tuple(states[-1]))
    macs, batched = measured(net, graph, shape)
    return Trunk(net.stages, graph, states, singles, _needed(net, shape, singles), macs, batched)


def _traced(stage: nn.Module, tensors: int, single: bool) -> fx.Graph:
    """The graph of a stage with one placeholder for every tensor of the state that enters it."""
    names = ", ".join(f"state{place}" for place in range(tensors))
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {names}):\n    return self.stage({names if single else f'({names},)'})", scope)
    flat: nn.Module = type("Flat", (nn.Module,), {"forward": scope["forward"]})()
    flat.stage = stage
    flat.training = stage.training
    return _LeafTracer().trace(flat)


def _needed(net: MultiExitNet, shape: tuple[int, int, int], singles: Sequence[bool]) -> list[tuple[int, ...]]:
    """For each exit the positions of the tensors that its logits, or its carry, follow from: by their gradients."""
    device = next(net.parameters()).device
    state: Any = blank(net, shape, 2)
    carry: Carry = ()
    needed = []
    with torch.inference_mode(False), torch.enable_grad():
        for stage, branch, single in zip(net.stages, net.branches, singles, strict=True):
            state = run_on_meta(stage, state)
            tensors = [
                torch.zeros(each.shape, dtype=each.dtype, device=device, requires_grad=each.is_floating_point())
                for each in ([state] if single else state)
            ]
            logits, _, _, carry = branch(tensors[0] if single else tuple(tensors), carry)
            carried = carry if isinstance(carry, tuple) else (carry,)
            total = sum((each.sum() for each in carried if each.requires_grad), logits.sum())
            grads = torch.autograd.grad(total, tensors, allow_unused=True, retain_graph=True)
            needed.append(tuple(place for place, grad in enumerate(grads) if grad is not None))
    return needed


def _postpone(trunk: Trunk) -> list[StagePlan] | None:
    """The new stages; None if they would not save enough."""
    nodes = list(trunk.graph.nodes)
    position = {node: place for place, node in enumerate(nodes)}
    inputs = nodes[0]
    available, chosen = {inputs}, []
    for state, needed in zip(trunk.states, trunk.needed, strict=True):
        part = _ancestors([state[place] for place in needed], available)
        part |= {user for node in part for user in node.users if _in_place(user, trunk)}
        available |= part & trunk.batched
        chosen.append(part)
    if not _worthwhile(trunk, chosen):
        return None
    plans, known, reads = [], {inputs}, [inputs]
    for exit, part in enumerate(chosen):
        known |= part & trunk.batched
        later = {source for other in chosen[exit + 1 :] for node in other for source in node.all_input_nodes}
        needed_later = {
            trunk.states[other][place] for other in range(exit, len(chosen)) for place in trunk.needed[other]
        }
        passed_on = sorted(known & (later | needed_later), key=position.__getitem__)
        plans.append(StagePlan(reads, sorted(part, key=position.__getitem__), passed_on))
        reads = passed_on
    return plans


def _ancestors(roots: Sequence[fx.Node], available: set[fx.Node]) -> set[fx.Node]:
    part: set[fx.Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in available and node not in part:
            part.add(node)
            waiting += node.all_input_nodes
    return part


def _in_place(node: fx.Node, trunk: Trunk) -> bool:
    """Whether a node changes its only input, which nothing else reads.

    Raises:
        _NotPostponable: if something else reads what it changes.
    """
    if node.op == "call_module":
        changes = bool(getattr(trunk.stages.get_submodule(str(node.target)), "inplace", False))
    else:
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        changes = bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
    if changes and len(node.all_input_nodes[0].users) > 1:
        raise _NotPostponable(f"{node.name} changes a tensor that others read")
    return changes


def _worthwhile(trunk: Trunk, chosen: Sequence[set[fx.Node]]) -> bool:
    """Whether some exit saves enough of the operations up to it, and none needs more."""
    position = {node: place for place, node in enumerate(trunk.graph.nodes)}
    ends = [max(position[node] for node in state) for state in trunk.states]
    costs = [trunk.macs.get(node, 0) for node in trunk.graph.nodes]
    before = list(accumulate(costs))
    now = list(accumulate(sum(trunk.macs.get(node, 0) for node in part) for part in chosen))
    pairs = [(before[end], cost) for end, cost in zip(ends, now, strict=True)]
    return all(new <= old for old, new in pairs) and any(new <= (1 - WORTHWHILE) * old for old, new in pairs)


class LazyStage(nn.Module):
    """A stage as a graph: the tensors that it reads -> those that are handed on."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, state: State) -> State:
        """State -> State."""
        result: State = self.graph(*state) if isinstance(state, tuple) else self.graph(state)
        return result


class PickingBranch(nn.Module):
    """A branch that picks the tensors it reads from a state; in place of the others it gets an empty tensor.

    Args:
        places: for each tensor of the state that the branch was made for, its position in the new one, None if unread.
        single: whether the branch takes one tensor.
    """

    def __init__(self, branch: nn.Module, places: Sequence[int | None], single: bool) -> None:
        super().__init__()
        self.branch = branch
        self.places = tuple(places)
        self.single = single
        self.chained_exit = is_chained(branch)

    def forward(self, state: State, carry: Carry = ()) -> Any:
        """(state, carry) -> (logits, feature, map, carry)."""
        tensors = state if isinstance(state, tuple) else (state,)
        unread = tensors[0].new_empty(0)
        picked = tuple(unread if place is None else tensors[place] for place in self.places)
        return self.branch(picked[0] if self.single else picked, carry)


def _assemble(net: MultiExitNet, trunk: Trunk, plans: Sequence[StagePlan]) -> MultiExitNet:
    stages, branches = [], []
    for exit, (part, branch) in enumerate(zip(plans, net.branches, strict=True)):
        stages.append(LazyStage(fx.GraphModule(net.stages, _graph(part))))
        position = {node: place for place, node in enumerate(part.hands_on)}
        read = trunk.needed[exit]
        places = [position[node] if place in read else None for place, node in enumerate(trunk.states[exit])]
        branches.append(PickingBranch(branch, places, trunk.single[exit]))
    return MultiExitNet(stages, branches)


def _graph(part: StagePlan) -> fx.Graph:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in part.reads}
    for node in part.computes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    results = tuple(copies[node] for node in part.hands_on)
    graph.output(results[0] if len(results) == 1 else results)
    return graph
