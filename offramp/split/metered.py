"""A graph run on the meta device by an interpreter that records what every node costs and returns."""

from typing import Any

from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.meta_device import blank, run_on_meta
from offramp.net import MultiExitNet


class _Meter(fx.Interpreter):
    """Runs a graph and records the multiply-adds and the shape of every node's value."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.macs: dict[fx.Node, int] = {}
        self.shapes: dict[fx.Node, tuple[int, ...] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        self.macs[n] = (self.counter.get_total_flops() - before) // 2
        self.shapes[n] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


class _Metered(nn.Module):
    """A graph module that is run by a meter."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__()
        self.module = module
        self.meter = _Meter(module, counter)

    def forward(self, inputs: Tensor) -> Any:
        return self.meter.run(inputs)


def measured(
    net: MultiExitNet, graph: fx.Graph, shape: tuple[int, int, int]
) -> tuple[dict[fx.Node, int], set[fx.Node]]:
    """Operations for one sample, and the nodes whose first dimension is that of the batch, for 2 and for 3 samples."""
    counter = FlopCounterMode(display=False)
    two, three = (_Metered(fx.GraphModule(net.stages, graph), counter) for _ in range(2))
    run_on_meta(two, blank(net, shape, 2))
    with counter:
        run_on_meta(three, blank(net, shape, 3))
    macs = {node: total // 3 for node, total in three.meter.macs.items()}

    def batched(node: fx.Node) -> bool:
        sizes = [(metered.meter.shapes.get(node) or (0,))[0] for metered in (two, three)]
        return node.op != "get_attr" and sizes == [2, 3]

    return macs, {node for node in graph.nodes if batched(node)}
