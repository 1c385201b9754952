"""ZTW (Wołczyk et al., NeurIPS 2021, Zero Time Waste): cascaded exits on a frozen backbone, then learned ensembles.

Family: cascade. Fits: any network with 2 exits or more; its exits become a chain.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distributed import weighing, weight_of
from offramp.losses.softmax import log_probabilities
from offramp.methods import joint
from offramp.methods._cascade import Concatenated, cascaded, sizes
from offramp.methods._check import choice, has_peers, not_negative, positive
from offramp.methods._method import Method, Phase, Terms, contains
from offramp.methods.vanilla import final_exit
from offramp.net import BuildBackbone, BuildBranch, MultiExitNet, attach
from offramp.outputs import Batch, Carry, ExitOutputs, State
from offramp.step import StepContext

Combine = Literal["geometric", "arithmetic"]
Norm = Literal["none", "layer"]
FitSplit = Literal["train", "val"]


def build(
    *,
    shares: tuple[float, ...] = (0.6, 0.3, 0.1),
    rates: tuple[float, ...] = (1.0, 1.0, 1.0),
    detach: bool = True,
    norm: Norm = "none",
    combine: Combine = "geometric",
    ensemble_final: bool = True,
    fit: FitSplit = "train",
) -> Method:
    """Three phases; what one trained is frozen in the next, so that the accuracy of the backbone does not change.

    1. The backbone alone: CE_K.
    2. The early exits: sum_{k<K} CE(z_k), where exit k's classifier sees [F_k ; N(sg z_{k-1})].
    3. The ensembles: sum_m CE(q_m), log q_m = (1/m) sum_{j<=m} exp(w^m_j) log p_j + b^m - log Z. From then on q_m is
       the output of exit m.

    Only the abstract and the introduction of the paper were available (it writes q as the product b prod p_j^w,
    equation numbers are unknown); formulas are those of the released code. The code's phases have optimizers of their
    own: SGD for 100 epochs; Adam, 1e-3, 50 epochs; Adam, 5e-4, 501 epochs on stored logits. Here one optimizer runs
    through all of them. Not published: the split for w and b (the code's is train), the grid of thresholds. Heads are
    those of the option branch, not the code's (3x3 convolution, ReLU, a learned mean of max and average pooling).

    Args:
        shares: shares of the epochs for the three phases; 0 skips a phase: 0,.7,.3 with a trained backbone (option
            weights), .7,.3,0 for the cascade without ensembles.
        rates: factor of the learning rate in each phase.
        detach: stop the gradient from an exit into the exits before it.
        norm: N, none or a layer norm (layer): the code's choice for large images.
        combine: geometric, or the code's other ensemble (arithmetic), q proportional to sum_j exp(w_j) p_j + exp(b).
        ensemble_final: the final exit uses an ensemble too; otherwise it remains that of the backbone.
        fit: split on which the ensembles are fitted: train, or the held-out val, on which the backbone is not
            over-confident.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("norm", norm, Norm)
    choice("combine", combine, Combine)
    choice("fit", fit, FitSplit)
    _three("shares", shares, not_negative)
    _three("rates", rates, positive)
    if not any(shares):
        raise ValueError("shares must leave at least one phase, got 0 for all")
    backbone = partial(Phase, "backbone", objective=final_exit)
    exits = partial(Phase, "exits", objective=early_exits)
    ensembles = partial(
        Phase,
        "exits",
        modules=mixtures,
        objective=joint.objective if ensemble_final else early_exits,
        begin=answer_together,
        step=on_held_out if fit == "val" else None,
    )
    phases = zip((backbone, exits, ensembles), shares, rates, strict=True)
    return Method(
        Cascade(),
        network=partial(network, norm=norm, combine=combine, detach=detach, ensemble_final=ensemble_final),
        phases=tuple(phase(share=share, rate=rate) for phase, share, rate in phases if share),
        needs_held_out=fit == "val" and shares[-1] > 0,
        check_network=contains(Ensemble),
    )


def _three(name: str, values: tuple[float, ...], check: Callable[[str, float], None]) -> None:
    if len(values) != 3:
        raise ValueError(f"{name} needs 3 values, for the backbone, the exits and the ensembles, got {len(values)}")
    for value in values:
        check(name, value)


class Cascade(nn.Module):
    """What is reported and checked for the method as a whole; its phases have objectives of their own."""

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check that there are exits to hand anything along."""
        has_peers("ztw", exits)
        return ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Term `ce`: cross-entropy of all exits, summed."""
        has_peers("ztw", len(outputs.logits))
        return joint.objective(outputs, batch, progress)


def early_exits(outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
    """Cross-entropy of all exits but the final one, summed."""
    return {"early": cross_entropy(outputs.logits[:-1], batch.labels).sum()}


def on_held_out(context: StepContext, batch: Batch, progress: float) -> Terms:
    """A step on the val batch that belongs to it, instead of the training batch."""
    assert context.held_out is not None
    held = context.held_out()
    with weighing(weight_of(len(held.ids), held.inputs)):
        return context.update(context.objective(context.outputs(held), held, progress))


def network(
    backbone: BuildBackbone,
    branch: BuildBranch,
    *,
    norm: Norm,
    combine: Combine,
    detach: bool,
    ensemble_final: bool,
) -> nn.Module:
    """The backbone with its branches cascaded, each with an ensemble of all exits so far."""
    trunk = backbone()
    net = attach(trunk, branch)
    classes, widths = sizes(net, trunk)
    links = [Concatenated(classes, width, norm=norm == "layer") for width in widths[1:-1]]
    branches = cascaded(net.branches, links, detach=detach)
    last = net.exits if ensemble_final else net.exits - 1
    together = [
        Ensemble(part, before, Mixture(before + 1, classes, combine)) for before, part in enumerate(branches[:last])
    ]
    return MultiExitNet(list(net.stages), [*together, *branches[last:]])


class Mixture(nn.Module):
    """q of an exit and those before it; `members` of them, over C classes.

    It starts as their plain geometric mean; the arithmetic one as that with 1 added to the sum at every class, exp(b).
    """

    def __init__(self, members: int, classes: int, combine: Combine) -> None:
        super().__init__()
        self.combine = combine
        self.weights = nn.Parameter(torch.zeros(members))  # logarithms: what multiplies is positive
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, logits: Float[Tensor, "B M C"]) -> Float[Tensor, "B C"]:
        """log q for the logits of all members, shallow to deep."""
        log_p = log_probabilities(logits)
        if self.combine == "geometric":
            return log_probabilities((self.weights.exp()[:, None] * log_p).mean(-2) + self.bias)
        weighted = torch.cat([log_p + self.weights[:, None], self.bias.expand_as(log_p[..., :1, :])], -2)
        return log_probabilities(weighted.logsumexp(-2))


class Ensemble(nn.Module):
    """A branch that returns the ensemble of all exits so far once it is switched on, and its own logits before.

    It passes on the logits of all exits so far, each (B, C).

    Args:
        branch: (state, carry) -> (logits, feature, map, carry); its carry begins with the previous logits.
        before: the number of earlier exits.
        mixture: combines the logits.
    """

    chained_exit = True
    on: Tensor

    def __init__(self, branch: nn.Module, before: int, mixture: Mixture) -> None:
        super().__init__()
        self.branch, self.before, self.mixture = branch, before, mixture
        self.register_buffer("on", torch.tensor(False))

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """(state, carry) -> (log q, or logits (B, C), feature, map, carry)."""
        earlier, branch_carry = carry[: self.before], carry[self.before :]
        alone, feature, before_pooling, branch_carry = self.branch(state, (*earlier[-1:], *branch_carry))
        together = self.mixture(torch.stack((*earlier, alone), -2))
        logits = torch.where(self.on, together, alone.to(together.dtype))
        return logits, feature, before_pooling, (*earlier, alone, *branch_carry[1:])


def mixtures(net: MultiExitNet) -> list[nn.Module]:
    """What the third phase trains."""
    return [part for part in net.modules() if isinstance(part, Mixture)]


def answer_together(net: nn.Module) -> None:
    """Switch the ensembles on."""
    for part in net.modules():
        if isinstance(part, Ensemble):
            part.on.fill_(True)
