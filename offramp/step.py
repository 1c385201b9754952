"""One optimizer step: what it works on, and the plain form that most methods take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.losses.distributed import weight
from offramp.net import Tap
from offramp.outputs import Batch, ExitOutputs
from offramp.protocols import Objective, Progress, Terms
from offramp.running_statistics import counted_together


@dataclass
class StepContext:
    """The arguments of an optimizer step: network, objective, optimizer and related objects.

    Attributes:
        fabric: Lightning Fabric, or an object with its `backward`, `autocast`, `no_backward_sync` and `world_size`.
        net: the network, wrapped for device and precision: (inputs, tap=...) -> ExitOutputs.
        objective: what is minimised, a function or an nn.Module.
        optimizer: the optimizer.
        tap: how gradients of exits are combined in the backbone.
        clip: maximum norm of the gradient; 0 disables clipping.
        bare: the same network without the wrapper.
        held_out: returns the held-out batch of this step, the same after a resume; None if nothing is held out.
        scaler: scaler of the losses, in precision 16.
        unsynchronised: whether gradients of the network must still be averaged over the processes by `update`.
        more_follows: the batch is a part of a larger one, and not its last: `update` adds to the gradients alone.
        compiled: the objective, compiled, which plain steps call; None: they call `objective`.
        norms: batch norms of `net` whose batches `outputs` counts by one operation.
    """

    fabric: Any
    net: Any
    objective: Objective
    optimizer: torch.optim.Optimizer
    tap: Tap
    clip: float = 0.0
    bare: nn.Module | None = None
    held_out: Callable[[], Batch] | None = None
    scaler: torch.amp.GradScaler | None = None
    unsynchronised: bool = False
    more_follows: bool = False
    compiled: Objective | None = None
    norms: Sequence[nn.modules.batchnorm._BatchNorm] = ()

    def outputs(self, batch: Batch, **how: Any) -> ExitOutputs:
        """The network's outputs for a batch, with the method's tap and further arguments of the network."""
        with counted_together(self.norms):
            outputs: ExitOutputs = self.net(batch.inputs, tap=self.tap, **how)
        return outputs

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradient of a loss of `net`'s outputs by parameter name, averaged over all processes.

        The graph is kept for `update`, and the parameters' own gradients are reset to None.
        """
        assert self.bare is not None
        self.fabric.backward(_weighted(loss), retain_graph=True)
        self.unsynchronised = True
        gradients = {}
        for name, parameter in self.bare.named_parameters():
            if parameter.requires_grad:
                gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = None
        return gradients

    def update(self, terms: Terms) -> Terms:
        """Minimise the sum of the terms by one optimizer step; returns the terms, detached.

        On several processes the terms are those of this process, weighted so that their mean over the processes is
        that of the batch.
        """
        terms = {name: _weighted(term) for name, term in terms.items()}
        self.fabric.backward(torch.stack(list(terms.values())).sum())
        if not self.more_follows:
            self._move()
        return {name: term.detach() for name, term in terms.items()}

    def _move(self) -> None:
        """The optimizer's step along the gradients, which are then None."""
        self._average_gradients()
        if self.clip:
            if self.scaler is not None:  # of the optimizer itself, not of Fabric's wrapper
                self.scaler.unscale_(getattr(self.optimizer, "optimizer", self.optimizer))
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _average_gradients(self) -> None:
        """Average over all processes what the network's wrapper does not: gradients of an objective's learned parts.

        The wrapper averages in the first backward pass after a forward pass only: after `gradient` not the network's.
        """
        unsynchronised, self.unsynchronised = self.unsynchronised, False
        if self.fabric.world_size == 1:
            return
        for part in (self.objective, self.bare if unsynchronised else None):
            for parameter in part.parameters() if isinstance(part, nn.Module) else ():
                gradient: Tensor | None = parameter.grad
                if gradient is not None:
                    parameter.grad = self.fabric.all_reduce(gradient, reduce_op="mean")


def _weighted(loss: Tensor) -> Tensor:
    """A loss times the weight of this process's share of the batch."""
    return loss if weight() == 1.0 else loss * weight()


def plain_step(context: StepContext, batch: Batch, progress: Progress) -> Terms:
    """Minimise the sum of the objective's terms on one batch; returns the terms, detached."""
    outputs = context.outputs(batch)
    return context.update((context.compiled or context.objective)(outputs, batch, progress))
