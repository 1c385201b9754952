"""BoostNet (Yu et al., AAAI 2023, Boosted Dynamic Neural Networks): outputs of exits are summed, as in boosting.

Family: labels. Fits: any network; its exits become a chain.
"""

from functools import partial

import torch
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distributed import global_mean
from offramp.methods._check import choice, fraction, not_negative
from offramp.methods._method import Method, Terms, contains
from offramp.methods._taps import Scope, equilibrium
from offramp.methods.joint import objective
from offramp.net import BuildBackbone, BuildBranch, MultiExitNet, attach, share
from offramp.outputs import Batch, Carry, ExitOutputs, State


def build(
    *,
    weaken: tuple[float, ...] = (0.5,),
    detach: bool = True,
    rescale: bool = True,
    scope: Scope = "coarsest",
    eval_shift: bool = False,
    equal: bool = False,
    decay: float = 0.9,
) -> Method:
    """L = sum_k CE(s_k), s_k = z_k + t_{k-1} sg(s_{k-1}): the running sum s_k is the output of exit k.

    Gradients between the stages are rescaled as in `equilibrium` (eq. 7). All exits learn from the same batch, as in
    the released code; sequential boosting, with a batch for each exit, is not implemented. The code's RANet has no
    rescaling. With weaken 0 it is `joint`, or `equilibrium`.

    Args:
        weaken: factor t of the sum so far, so that deep exits still learn from hard samples: one value, two values
            (interpolated from the first exit to the last), or one per exit. All released scripts use 0.5.
        detach: stop the gradient from later sums into earlier exits.
        rescale: gradient equilibrium between the stages.
        scope: in networks of several scales rescale the coarsest one, as the authors' code, or all.
        eval_shift: in evaluation mode use t_k instead of t_{k-1}, as the released code; equal for a single t.
        equal: scale every exit's loss to the mean size of all (`loss_equal` in the code, off in all its scripts).
        decay: decay of the moving averages of these losses.

    Raises:
        ValueError: if a value is out of range.
    """
    choice("scope", scope, Scope)
    fraction("decay", decay)
    for value in weaken:
        not_negative("weaken", value)
    if not weaken:
        raise ValueError("weaken needs one value, two values, or one for each exit")
    return Method(
        AsLarge(decay) if equal else objective,
        network=partial(network, weaken=tuple(weaken), detach=detach, eval_shift=eval_shift),
        tap=partial(equilibrium, scope=scope) if rescale else share,
        check_network=contains(Summed),
        whole_batch="equal scales the losses by averages of every batch" if equal else "",
    )


def exit_factors(weaken: tuple[float, ...], exits: int) -> list[float]:
    """t of each exit.

    Raises:
        ValueError: if there are not 1, 2 or `exits` values.
    """
    if len(weaken) == exits:
        return list(weaken)
    if len(weaken) > 2:
        raise ValueError(f"weaken has {len(weaken)} values, but the network has {exits} exits: give 1, 2 or {exits}")
    return [float(value) for value in torch.linspace(weaken[0], weaken[-1], exits, dtype=torch.float64, device="cpu")]


class Summed(nn.Module):
    """A branch whose logits are added to the sum of those before it, unless it ignores them; passes the sum on."""

    chained_exit = True
    ignores_earlier_exits = False

    def __init__(self, branch: nn.Module, weaken: float, weaken_in_use: float, detach: bool) -> None:
        super().__init__()
        self.branch, self.weaken, self.weaken_in_use, self.detach = branch, weaken, weaken_in_use, detach

    @property
    def depends_on_earlier_exits(self) -> bool:
        """Whether its result depends on the exits before it."""
        return bool(self.weaken or self.weaken_in_use)

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """(state, carry) -> (running sum (B, C), feature, map, carry)."""
        logits, feature, before_pooling, branch_carry = self.branch(state, carry[1:])
        if carry and not self.ignores_earlier_exits:
            earlier = carry[0].detach() if self.detach else carry[0]
            logits = logits + (self.weaken if self.training else self.weaken_in_use) * earlier
        return logits, feature, before_pooling, (logits, *branch_carry)


def network(
    backbone: BuildBackbone, branch: BuildBranch, *, weaken: tuple[float, ...], detach: bool, eval_shift: bool
) -> nn.Module:
    """The backbone with its branches, their logits summed."""
    net = attach(backbone(), branch)
    return summed(net, exit_factors(weaken, net.exits), detach=detach, eval_shift=eval_shift)


def summed(net: MultiExitNet, weaken: list[float], *, detach: bool = True, eval_shift: bool = False) -> MultiExitNet:
    """The network with each branch made a `Summed` one; modules are shared."""
    before = [0.0, *weaken[:-1]]
    in_use = weaken if eval_shift else before
    branches = [
        Summed(branch, training, using, detach)
        for branch, training, using in zip(net.branches, before, in_use, strict=True)
    ]
    return MultiExitNet(list(net.stages), branches)


class AsLarge(nn.Module):
    """The objective with every exit's loss scaled to the mean size of all; the averages are stored with the run."""

    averages: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("averages", torch.zeros(0))  # 0 where nothing was observed yet

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Learn how many exits there are."""
        self.averages = torch.zeros(exits)
        return ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Term `ce`; in training mode the averages take in this batch first."""
        ce = cross_entropy(outputs.logits, batch.labels)
        size = self.averages
        if self.training or not bool(size.all()):
            now = global_mean(ce)
            size = torch.where(size == 0, now, self.decay * size + (1.0 - self.decay) * now)
        if self.training:
            self.averages.copy_(size)
        return {"ce": (ce * (size.mean() / size)).sum()}
