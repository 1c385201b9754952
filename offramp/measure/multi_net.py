"""Costs and accuracy of several networks: of each alone, and of all, which is the cost of training."""

from itertools import accumulate

from torch import nn

from offramp.measure import cost
from offramp.measure.accuracy import summary
from offramp.measure.cost import ImageShape
from offramp.multi_net import Cohort, GatedFan, MultiNet
from offramp.net import MultiExitNet
from offramp.outputs import Trace


def macs(net: MultiNet, shape: ImageShape) -> list[int]:
    """Multiply-adds for one sample of each output's plain network; a gated ensemble needs all branches."""
    return [cost.macs(net.deploy(output), shape)[-1] for output in range(net.exits)]


def macs_cumulative(net: MultiNet, shape: ImageShape) -> list[int]:
    """Multiply-adds to compute each output and all before it; the last value is the total."""
    each = macs(net, shape)
    if isinstance(net, Cohort):
        return list(accumulate(each))
    shared = cost.measure(net.deploy(net.exits - 1), shape).stages[0]
    return [shared + branches_macs for branches_macs in accumulate(branch - shared for branch in each[:-1])] + each[-1:]


def training_cost(net: nn.Module, shape: ImageShape) -> dict[str, int]:
    """Forward `macs` per sample and `parameters` of everything that is trained: networks, branches and exits."""
    assert isinstance(net, MultiExitNet | Cohort | GatedFan)
    forward = cost.macs_cumulative if isinstance(net, MultiExitNet) else macs_cumulative
    return {"macs": forward(net, shape)[-1], "parameters": sum(part.numel() for part in net.parameters())}  # type: ignore[arg-type]


def accuracies(net: MultiNet, trace: Trace) -> dict[str, object]:
    """As `offramp.measure.accuracy.summary`; ensemble: the gated one of a fan, the sum of logits of a cohort."""
    values = summary(trace)
    accuracy = values["accuracy"]
    assert isinstance(accuracy, list)
    return values if isinstance(net, Cohort) else {**values, "ensemble": accuracy[-1]}
