"""What a step works on, for methods that take their own: the network, the optimiser, held-out batches, the update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.losses.distributed import weight
from offramp.methods._method import Objective, Terms
from offramp.net import Tap
from offramp.outputs import Batch


@dataclass
class Parts:
    """What a step works on.

    `net` is wrapped for device and precision by `fabric` and answers float32; `bare` is the same network unwrapped,
    in its own precision; `objective` is a function or a Module. `held_out` answers the batch of the val split that
    belongs to this step, the same after a resume; None where nothing was held out.
    """

    fabric: Any
    net: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    tap: Tap
    clip: float = 0.0
    bare: nn.Module | None = None
    held_out: Callable[[], Batch] | None = None
    looked: bool = False

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradient of a loss of `net`'s outputs by its parameters' names, averaged over all processes.

        The graph is kept for `update`, and no parameter's own gradient is left behind.
        """
        assert self.bare is not None
        self.fabric.backward(_weighed(loss), retain_graph=True)
        self.looked = True
        found = {}
        for name, parameter in self.bare.named_parameters():
            if parameter.requires_grad:
                found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = None
        return found

    def update(self, terms: Terms) -> Terms:
        """Minimise the sum of the terms by one optimiser step; answers the terms, detached.

        On several processes the terms are this one's, weighed so that their mean over the processes is the batch's.
        """
        terms = {name: _weighed(term) for name, term in terms.items()}
        self.fabric.backward(torch.stack(list(terms.values())).sum())
        self._share_gradients()
        if self.clip:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: term.detach() for name, term in terms.items()}

    def _share_gradients(self) -> None:
        """Average over all processes what the network's wrapper does not: gradients of an objective's learned parts.

        The wrapper averages in the first backward after a forward only, so after `gradient` the network's too.
        """
        looked, self.looked = self.looked, False
        if self.fabric.world_size == 1:
            return
        for part in (self.objective, self.bare if looked else None):
            for parameter in part.parameters() if isinstance(part, nn.Module) else ():
                gradient: Tensor | None = parameter.grad
                if gradient is not None:
                    parameter.grad = self.fabric.all_reduce(gradient, reduce_op="mean")


def _weighed(loss: Tensor) -> Tensor:
    """A loss by how much this process's share of the batch counts."""
    return loss if weight() == 1.0 else loss * weight()
