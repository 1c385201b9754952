"""IMTA (Li et al., ICCV 2019): gradient equilibrium, then distillation into the exits of a frozen backbone.

Family: final exit. Fits: any network with 2 exits or more; in networks of several scales (MSDNet) as `equilibrium`.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.methods import joint
from offramp.methods._cascade import Cascaded, linked, sizes, switch_on
from offramp.methods._check import choice, positive
from offramp.methods._method import Method, Phase, Terms, contains
from offramp.methods._taps import Scope, equilibrium
from offramp.methods.ofa import OneForAll, Reduction
from offramp.net import BuildBackbone, BuildBranch, MultiExitNet, attach
from offramp.outputs import Batch, Carry, State
from offramp.step import StepContext

Norms = Literal["still", "moving"]


def build(
    *,
    gamma: float = 0.9,
    temperature: float = 3.0,
    shares: tuple[float, ...] = (0.5, 0.5),
    rates: tuple[float, ...] = (1.0, 1.0),
    links: bool = True,
    detach: bool = True,
    reduction: Reduction = "batch",
    norms: Norms = "still",
    scope: Scope = "coarsest",
) -> Method:
    """Two stages of equal length; `impr` is the variant in one stage that other papers compare with.

    1. Gradient equilibrium (section 3.1): sum_k CE_k as in `equilibrium`.
    2. The backbone is frozen and the exits learn: CE_K + sum_{k<K} [ (1-g) CE_k + g T^2 KL_T(sg t -> z_k) ] (OFA), t
    the
       logits that the final exit gave at the end of stage 1. Exit k's classifier now sees [F_k ; phi(sg z_{k-1})],
       phi a linear layer to the width of F_k, batch norm and ReLU (inline collaboration, ISC).

    The equation numbers of stage 2 are unknown. The backbone is here everything but the early exits and, if it takes
    the pooled features, the linear layer of the final exit. Exits continue from stage 1, and their links start at
    weight 0; the code trains new exits. In the code: 90 epochs (ImageNet) or 300 in each stage at the same rates; gamma
    .1 and temperature 1 on ImageNet.

    Args:
        gamma: share g of the distillation term at the early exits; the cross-entropy has 1 - g.
        temperature: temperature T of the distillation.
        shares: shares of the epochs for the two stages.
        rates: factor of the learning rate in each stage.
        links: inline collaboration (ISC); without it exits see their own features only.
        detach: no gradient from later to earlier exits through the links, as in the paper; the code lets it pass.
        reduction: mean of the divergence over the batch, or over batch and classes (elements), as the code.
        norms: batch norms of the frozen backbone keep their running statistics (still), or keep updating them, as in
            the code (moving).
        scope: in networks of several scales rescale the coarsest one, as the code, or all.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("norms", norms, Norms)
    choice("scope", scope, Scope)
    for name, values in (("shares", shares), ("rates", rates)):
        if len(values) != 2:
            raise ValueError(f"{name} needs 2 values, one for each stage, got {len(values)}")
        for value in values:
            positive(name, value)
    second = Phase(
        "exits", shares[1], rates[1], modules=classifiers, step=stage_2_step, begin=end_stage_1, still=norms == "still"
    )
    return Method(
        OneForAll("imta", gamma, temperature, reduction),
        network=partial(network, links=links, detach=detach),
        tap=partial(equilibrium, scope=scope),
        check_network=contains(Cascaded) if links else contains(Final),
        phases=(Phase("all", shares[0], rates[0], modules=unlinked, objective=joint.objective), second),
    )


def network(backbone: BuildBackbone, branch: BuildBranch, *, links: bool, detach: bool) -> nn.Module:
    """The backbone with its branches, linked if they collaborate; the final exit keeps its classifier of stage 1.

    A final exit whose logits do not come from one linear layer on its features has nothing that could learn beside the
    teacher: it stays as stage 1 leaves it, without a link.
    """
    trunk = backbone()
    net = attach(trunk, branch)
    *early, last = net.branches
    classes, widths = sizes(net, trunk)
    layer = classifier(last, classes, widths[-1])
    branches = [*early, last if layer is None else Final(last, layer)]
    if links:
        adapted = widths[1:] if layer is not None else widths[1:-1]
        branches = linked(branches, classes, adapted, detach=detach, on=False)
    return MultiExitNet(list(net.stages), branches)


def classifier(branch: nn.Module, classes: int, width: int) -> nn.Linear | None:
    """The linear layer from the features of a branch to its logits, if there is one."""
    fitting = [
        part
        for part in branch.modules()
        if isinstance(part, nn.Linear) and (part.out_features, part.in_features) == (classes, width)
    ]
    return fitting[0] if len(fitting) == 1 and fitting[0].bias is not None else None


class Final(nn.Module):
    """The final exit; keeps its linear layer as stage 1 left it, beside the one that is trained further."""

    weight: Tensor
    bias: Tensor

    def __init__(self, branch: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.branch = branch
        self.place = next(name for name, part in branch.named_modules() if part is classifier)
        self.register_buffer("weight", classifier.weight.detach().clone())
        self.register_buffer("bias", classifier.bias.detach().clone())

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer that is trained further."""
        layer = self.branch.get_submodule(self.place)
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """What the branch returns."""
        outputs: tuple[Tensor, Tensor, Tensor, Carry] = self.branch(state, carry)
        return outputs

    @torch.no_grad()
    def store_classifier(self) -> None:
        """Keep the linear layer as it is now."""
        self.weight.copy_(self.classifier.weight)
        self.bias.copy_(self.classifier.bias)

    def teach(self, feature: Float[Tensor, "B D"]) -> Float[Tensor, "1 B C"]:
        """The logits that stage 1 gave for these features."""
        return F.linear(feature, self.weight, self.bias)[None]


def finals(net: nn.Module) -> list[Final]:
    """The final exit that keeps its classifier of stage 1, if there is one."""
    return [part for part in net.modules() if isinstance(part, Final)]


def unlinked(net: MultiExitNet) -> list[nn.Module]:
    """What stage 1 trains: all but the links, which weight decay would shrink before they are used."""
    return [*net.stages, *(part.branch if isinstance(part, Cascaded) else part for part in net.branches)]


def classifiers(net: MultiExitNet) -> list[nn.Module]:
    """What stage 2 trains: the early exits, the final exit's linear layer, and all links."""
    links = [part.link for part in net.modules() if isinstance(part, Cascaded) and part.link is not None]
    return [*net.branches[:-1], *(final.classifier for final in finals(net)), *links]


def end_stage_1(net: nn.Module) -> None:
    """The end of stage 1: store the final exit's linear layer, and activate the links."""
    for final in finals(net):
        final.store_classifier()
    switch_on(net)


def stage_2_step(context: StepContext, batch: Batch, progress: float) -> Terms:
    """A step of stage 2, in which the final exit of stage 1 teaches; one that does not learn is that still."""
    assert context.bare is not None
    outputs = context.outputs(batch)
    final = finals(context.bare)
    teacher = final[0].teach(outputs.features[-1]) if final else None
    objective: Any = context.objective
    return context.update(objective(outputs, batch, progress, teacher=teacher))
