"""DML (Zhang et al., CVPR 2018, Deep Mutual Learning): several networks learn from the labels and from one another.

Family: several networks. Fits: any network; exits are not built.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.lookup import with_parameters
from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl
from offramp.losses.kl_table import kl_table
from offramp.methods._check import choice, not_negative, positive
from offramp.methods._method import Method, Terms, contains
from offramp.multi_net import Cohort
from offramp.net import BuildBackbone, BuildBranch, plain
from offramp.outputs import Batch, ExitOutputs
from offramp.step import StepContext

Updates = Literal["simultaneous", "alternating"]


def build(
    *,
    networks: int | None = None,
    updates: Updates = "simultaneous",
    weight: float = 1.0,
    temperature: float = 1.0,
) -> Method:
    """Network k of K minimises CE_k + w T^2/(K-1) sum_{l/=k} KL_T(sg z_l -> z_k); the sum over k is logged.

    The networks have no exits and share nothing: `net=resnet18,resnet34` trains one of each, `net=resnet18` trains
    copies with different initial weights. The paper has neither w nor T. Alternating is its Algorithm 1: each network
    takes its own step, and its logits are computed again before the next one learns from it (2K-1 forward passes
    instead of K; running statistics are updated once). The authors' code adds 1e-8 within the logarithm, which is left
    out here. `offramp deploy` extracts one of the networks.

    Args:
        networks: number of networks K; default one of each kind that `net` names, or 2 if it names one.
        updates: whether all networks take their step at once (simultaneous) or one after the other (alternating).
        weight: weight w of the mutual term.
        temperature: temperature T of the mutual term.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("updates", updates, Updates)
    not_negative("weight", weight)
    positive("temperature", temperature)
    if networks is not None:
        enough(networks)
    return Method(
        DeepMutual(weight, temperature),
        network=partial(copies, networks=networks),
        cohort=partial(cohort, networks=networks),
        step=alternate if updates == "alternating" else None,
        check_network=contains(Cohort),
    )


def enough(networks: int) -> None:
    """Raise ValueError if there is no second network to learn from."""
    if networks < 2:
        raise with_parameters(
            ValueError(
                f"dml lets networks teach each other and needs at least 2 of them, got {networks}: raise "
                "method.networks, or name several, such as net=resnet18,resnet34"
            ),
            "method.networks",
            "net",
        )


def copies(backbone: BuildBackbone, branch: BuildBranch, *, networks: int | None) -> nn.Module:
    """Networks of one kind, each built again; the branches are never built."""
    return Cohort([plain(backbone()) for _ in range(2 if networks is None else networks)])


def cohort(backbones: Sequence[BuildBackbone], *, networks: int | None) -> nn.Module:
    """One network of each kind.

    Raises:
        ValueError: if another number of networks was asked for.
    """
    if networks not in (None, len(backbones)):
        raise with_parameters(
            ValueError(f"method.networks={networks} contradicts net, which names {len(backbones)} networks"),
            "method.networks",
            "net",
        )
    return Cohort([plain(backbone()) for backbone in backbones])


class DeepMutual(nn.Module):
    """The objective of DML; it owns nothing that is learned."""

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check that there is a network to learn from."""
        enough(exits)
        return ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce` and `kl` of all networks together."""
        logits = outputs.logits
        enough(len(logits))
        table = kl_table(logits, temperature=self.temperature)
        others = 1.0 - torch.eye(len(logits), dtype=table.dtype, device=table.device)
        imitated = (table * others).sum() / (len(logits) - 1)
        return {
            "ce": cross_entropy(logits, batch.labels).sum(),
            "kl": self.weight * self.temperature**2 * imitated,
        }

    def of_one(self, student: Float[Tensor, "B C"], teachers: Float[Tensor, "E B C"], batch: Batch) -> Terms:
        """The terms of one network, whose teachers are all others."""
        imitated = kl(student.expand_as(teachers), teachers, temperature=self.temperature).mean()
        return {
            "ce": cross_entropy(student[None], batch.labels).sum(),
            "kl": self.weight * self.temperature**2 * imitated,
        }


def alternate(context: StepContext, batch: Batch, progress: float) -> Terms:
    """One optimizer step for each network in turn; returns the sum of the terms of all steps."""
    net, objective = context.bare, context.objective
    assert isinstance(net, Cohort) and isinstance(objective, DeepMutual)
    per_network: list[Terms] = []
    # The wrapper would wait for gradients of all networks; `unsynchronised` lets `update` average the existing ones.
    with context.fabric.no_backward_sync(context.net):
        logits = [context.outputs(batch, only=member).logits[0] for member in range(net.exits)]
        for member, student in enumerate(logits):
            teachers = torch.stack([other.detach() for other in logits if other is not student])
            context.unsynchronised = context.fabric.world_size > 1
            per_network.append(context.update(objective.of_one(student, teachers, batch)))
            if member < net.exits - 1:
                with torch.no_grad(), unmoved(net.deploy(member)):
                    logits[member] = context.outputs(batch, only=member).logits[0]
    return {name: torch.stack([terms[name] for terms in per_network]).sum() for name in per_network[0]}


@contextmanager
def unmoved(net: nn.Module) -> Iterator[None]:
    """Within, the network may run in training mode; afterwards its running statistics are what they were."""
    before = [buffer.clone() for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, kept in zip(net.buffers(), before, strict=True):
            buffer.copy_(kept)
