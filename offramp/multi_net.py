"""Several networks trained as one: a cohort that shares nothing, and a fan of branches with a gated ensemble.

Neither is a chain of exits: its outputs are of equal depth, so there is no early exit. `deploy` gives a
plain network, whose modules are shared with the one it comes from.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.softmax import exact, log_probabilities
from offramp.net import Branch, MultiExitNet, Tap, share
from offramp.outputs import Carry, ExitOutputs, State


class Cohort(nn.Module):
    """Several networks that are trained together on the same inputs (DML).

    Args:
        members: plain networks (one exit each) for the same inputs and classes, sharing no modules.
    Raises:
        ValueError: if there are fewer than two, or one has early exits.
    """

    def __init__(self, members: Sequence[MultiExitNet]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"a cohort needs at least 2 networks, got {len(members)}")
        if any(member.exits != 1 for member in members):
            raise ValueError(
                f"a cohort consists of networks without early exits, got {[net.exits for net in members]} exits"
            )
        self.members = nn.ModuleList(members)

    @property
    def exits(self) -> int:
        """E, the number of outputs: one per network."""
        return len(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each output."""
        return tuple(f"network {number}" for number in range(1, self.exits + 1))

    def forward(self, inputs: State, tap: Tap = share, only: int | None = None) -> ExitOutputs:
        """Outputs of every network, or of number `only` (from 0) alone, for inputs (B, channels, H, W)."""
        members = self.members if only is None else [self.members[only]]
        each = [member(inputs, tap=tap) for member in members]
        logits = torch.stack([outputs.logits[0] for outputs in each])
        return ExitOutputs(logits, tuple(o.features[0] for o in each), tuple(o.maps[0] for o in each))

    def deploy(self, output: int) -> MultiExitNet:
        """The network that gives `output` (from 0)."""
        member = self.members[output]
        assert isinstance(member, MultiExitNet)
        return member


class Gate(nn.Module):
    """How much each branch counts for a sample: pooling, linear layer, batch norm, ReLU, softmax (ONE).

    Args:
        width: D of the state that all branches share.
        branches: how many weights there are for a sample.
    """

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """(weights (B, branches) that sum to 1, pooled feature (B, D), map); of several scales the coarsest one."""
        features = state[-1] if isinstance(state, tuple) else state
        pooled = features.mean((2, 3)) if features.dim() == 4 else features.mean(1)
        return log_probabilities(self.norm(self.linear(pooled)).relu()).exp(), pooled, features


def gated(logits: Float[Tensor, "K B C"], weights: Float[Tensor, "B K"]) -> Float[Tensor, "B C"]:
    """The ensemble's logits: those of K branches, weighted for each sample; computed in float32 at least."""
    return (exact(logits) * weights.T.unsqueeze(-1)).sum(0).to(logits.dtype)


class GatedEnsemble(nn.Module):
    """Branches and their gate as one exit: (state, carry) -> (logits (B, C), feature, map, carry).

    The ensemble has no feature of its own; what it hands out is what the gate sees.
    """

    chained_exit = False

    def __init__(self, branches: Sequence[Branch], gate: Gate) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.gate = gate

    def all(self, state: State) -> ExitOutputs:
        """Outputs of every branch, the ensemble's last."""
        each = [branch(state) for branch in self.branches]
        weights, pooled, maps = self.gate(state)
        logits = torch.stack([outputs[0] for outputs in each])
        both = torch.cat([logits, gated(logits, weights)[None]])
        return ExitOutputs(both, (*(outputs[1] for outputs in each), pooled), (*(outputs[2] for outputs in each), maps))

    def forward(self, state: State, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        """Outputs of the ensemble only."""
        logits, features, maps = self.all(state)
        return logits[-1], features[-1], maps[-1], carry


class GatedFan(nn.Module):
    """Shared blocks followed by several branches, with the gated ensemble of the branches as the last output (ONE).

    Args:
        trunk: the blocks that all branches share, before them.
        ensemble: the branches, each a Sequential of blocks with its head, and their gate.
    """

    def __init__(self, trunk: nn.Sequential, ensemble: GatedEnsemble) -> None:
        super().__init__()
        self.trunk, self.ensemble = trunk, ensemble

    @property
    def exits(self) -> int:
        """E, the number of outputs: one per branch, and the ensemble."""
        return len(self.ensemble.branches) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each output."""
        return (*(f"branch {number}" for number in range(1, self.exits)), "gated ensemble")

    def forward(self, inputs: State, tap: Tap = share) -> ExitOutputs:
        """Outputs of every branch, then of the ensemble, for inputs (B, channels, H, W). `tap` has no effect."""
        return self.ensemble.all(self.trunk(inputs))

    def deploy(self, output: int) -> MultiExitNet:
        """The plain network that gives `output` (from 0): trunk and one branch, or all of them behind the gate."""
        if output == self.exits - 1:
            return MultiExitNet([self.trunk], [self.ensemble])
        branch = self.ensemble.branches[output]
        assert isinstance(branch, Branch) and isinstance(branch.body, nn.Sequential)
        return MultiExitNet([nn.Sequential(*self.trunk, *branch.body)], [Branch(nn.Identity(), branch.head)])


MultiNet = Cohort | GatedFan


def single(net: nn.Module) -> list[MultiExitNet]:
    """The networks with a backbone and a head each that this one is made of, sharing its modules: itself, if it is one.

    Weights of one network, such as those of the option `weights`, fit each of them.
    """
    if isinstance(net, Cohort):
        return [net.deploy(output) for output in range(net.exits)]
    if isinstance(net, GatedFan):
        return [net.deploy(output) for output in range(net.exits - 1)]
    assert isinstance(net, MultiExitNet)
    trunk, ensemble = net.stages[0], net.branches[-1]
    if isinstance(ensemble, GatedEnsemble) and isinstance(trunk, nn.Sequential):
        return single(GatedFan(trunk, ensemble))
    return [net]
