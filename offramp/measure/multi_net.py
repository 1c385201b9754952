"""What several networks cost and answer: each on its own, and all of them, which is what their training costs."""

from itertools import accumulate

from torch import nn

from offramp.measure import cost
from offramp.measure.accuracy import summary
from offramp.measure.cost import Image
from offramp.multi_net import Cohort, GatedFan, Several
from offramp.net import MultiExitNet
from offramp.outputs import Trace


def macs(net: Several, shape: Image) -> list[int]:
    """Multiply-adds for one sample of each output's plain network; a gated ensemble needs all branches."""
    return [cost.macs(net.deploy(output), shape)[-1] for output in range(net.exits)]


def macs_cumulative(net: Several, shape: Image) -> list[int]:
    """Multiply-adds until each output is there, those before it computed too; the last is all there is to compute."""
    each = macs(net, shape)
    if isinstance(net, Cohort):
        return list(accumulate(each))
    shared = cost.measure(net.deploy(net.exits - 1), shape).stages[0]
    return [shared + own for own in accumulate(branch - shared for branch in each[:-1])] + each[-1:]


def training_cost(net: nn.Module, shape: Image) -> dict[str, int]:
    """Of everything that is trained, every network, branch and exit: forward `macs` per sample, and `parameters`."""
    assert isinstance(net, MultiExitNet | Cohort | GatedFan)
    forward = cost.macs_cumulative if isinstance(net, MultiExitNet) else macs_cumulative
    return {"macs": forward(net, shape)[-1], "parameters": sum(part.numel() for part in net.parameters())}  # type: ignore[arg-type]


def answers(net: Several, trace: Trace) -> dict[str, object]:
    """As `offramp.measure.accuracy.summary`; the ensemble of a fan is its gated one, of a cohort the sum of logits."""
    found = summary(trace)
    accuracy = found["accuracy"]
    assert isinstance(accuracy, list)
    return found if isinstance(net, Cohort) else {**found, "ensemble": accuracy[-1]}
