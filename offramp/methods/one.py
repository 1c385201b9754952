"""ONE (Lan et al., NeurIPS 2018, Knowledge Distillation by On-the-Fly Native Ensemble): a gated ensemble of branches.

Family: several networks. Fits: any network with two stages or more; exits are not built.
"""

import math
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.lookup import with_parameters
from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.schedules import weighted
from offramp.losses.softmax import log_probabilities
from offramp.meta_device import blank, run_on_meta
from offramp.methods._check import choice, fraction, not_negative, positive
from offramp.methods._method import Method, Terms, contains
from offramp.multi_net import Gate, GatedEnsemble, GatedFan
from offramp.net import Backbone, Branch, BuildBackbone, BuildBranch
from offramp.outputs import Batch, ExitOutputs
from offramp.protocols import Progress

Form = Literal["fan", "ensemble"]


def build(
    *,
    branches: int = 3,
    stages: int = 1,
    weight: float = 1.0,
    temperature: float = 3.0,
    ramp_up: float = 80 / 300,
    floor: float = 1e-7,
    form: Form = "fan",
) -> Method:
    """L = sum_k CE_k + CE(z_e) + w(p) T^2 sum_k KL_T(sg z_e -> z_k), z_e = sum_k g_k z_k with a gate g for each sample.

    The branches are copies of the last stages, newly initialised; they share all stages before. The gate is learned
    from CE(z_e). The paper's weight of the distillation term is constant; the authors' code raises it over the first 80
    of 300 epochs, w(p) = exp(-5 (1 - min(p, r)/r)^2), and adds 1e-7 to the teacher's probabilities. Both are the
    defaults here. The exits of the option `branch` are not built. `offramp deploy` extracts one branch, or the gated
    ensemble.

    Args:
        branches: number m of copies.
        stages: number of last stages that are copied.
        weight: weight of the distillation term after the ramp-up.
        temperature: temperature T of the distillation.
        ramp_up: share r of the run during which the weight increases; 0 is the paper's constant weight.
        floor: added to the teacher's probabilities, as weight and within the logarithm; 0 is the paper's divergence.
        form: `fan` is ONE. `ensemble` is the gated ensemble as one exit, which is what `offramp deploy` writes; trained
            like that, its cross-entropy alone is minimised.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("form", form, Form)
    for name, value in (("branches", branches), ("stages", stages)):
        if value < (2 if name == "branches" else 1):
            raise ValueError(f"{name} must be at least {2 if name == 'branches' else 1}, got {value}")
    positive("temperature", temperature)
    not_negative("weight", weight)
    not_negative("floor", floor)
    fraction("ramp_up", ramp_up)
    return Method(
        NativeEnsemble(weight, temperature, ramp_up, floor),
        network=partial(network, branches=branches, stages=stages, form=form),
        scheduled=("kl",) if ramp_up else (),
        tensor_progress=True,
        check_network=contains(GatedFan if form == "fan" else GatedEnsemble),
    )


def network(backbone: BuildBackbone, branch: BuildBranch, *, branches: int, stages: int, form: Form) -> nn.Module:
    """The fan, or its gated ensemble alone.

    Raises:
        ValueError: if there are fewer stages, or nothing that a gate could pool before them.
    """
    built = [backbone() for _ in range(branches)]
    if stages >= len(built[0].stages):
        raise with_parameters(
            ValueError(f"method.stages must be below {len(built[0].stages)}, the stages of the network, got {stages}"),
            "method.stages",
        )
    trunk = nn.Sequential(*(block for stage in built[0].stages[:-stages] for block in stage))
    ends = [
        Branch(nn.Sequential(*(block for stage in each.stages[-stages:] for block in stage)), each.head)
        for each in built
    ]
    fan = GatedFan(trunk, GatedEnsemble(ends, Gate(shared_width(trunk, built[0]), branches)))
    return fan if form == "fan" else fan.deploy(branches)


def shared_width(trunk: nn.Module, backbone: Backbone) -> int:
    """D of what the branches share: channels of the (coarsest) map, or width of the tokens."""
    state = run_on_meta(trunk, blank(trunk, backbone.shape))
    shared = state[-1] if isinstance(state, tuple) else state
    if shared.dim() not in (3, 4):
        raise ValueError(
            f"the gate of the method one needs maps or tokens before the branches, got shape {tuple(shared.shape)}"
        )
    return int(shared.shape[1] if shared.dim() == 4 else shared.shape[2])


def rise(progress: Progress, share: float) -> Progress:
    """exp(-5 (1 - min(progress, share)/share)^2), the sigmoid ramp-up of the authors' code; 1 where the share is 0."""
    if not share:
        return 1.0
    if isinstance(progress, Tensor):
        return (-5.0 * (1.0 - progress.clamp(max=share) / share) ** 2).exp()
    return math.exp(-5.0 * (1.0 - min(progress, share) / share) ** 2)


def towards(
    students: Float[Tensor, "E B C"], teacher: Float[Tensor, "B C"], temperature: float, floor: float
) -> Float[Tensor, "E"]:
    """sum_c t (log t - log p_student), t = p_teacher + floor, mean over the batch, in nats; the teacher is detached."""
    log_t = log_probabilities(teacher.detach(), temperature)
    if floor:
        log_t = (log_t.exp() + floor).log()
    return (log_t.exp() * (log_t - log_probabilities(students, temperature))).sum(-1).mean(-1)


class NativeEnsemble(nn.Module):
    """The objective of ONE; it owns nothing that is learned (the gate is the network's)."""

    def __init__(self, weight: float, temperature: float, ramp_up: float, floor: float) -> None:
        super().__init__()
        self.weight, self.temperature, self.ramp_up, self.floor = weight, temperature, ramp_up, floor

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: Progress) -> Terms:
        """Terms `ce`, of all branches and the ensemble, and `kl`; `ce` alone where the ensemble is all there is."""
        logits = outputs.logits
        terms = {"ce": cross_entropy(logits, batch.labels).sum()}
        if len(logits) == 1:
            return terms
        with torch.autocast(logits.device.type, enabled=False):
            imitated = towards(logits[:-1], logits[-1], self.temperature, self.floor).sum()
        factor = self.weight * rise(progress, self.ramp_up) * self.temperature**2
        return {**terms, "kl": weighted(factor, imitated)}
