"""Any method in your own training loop, with your own optimizer, data loader and precision."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp.argument_types import check_arguments
from offramp.losses.distributed import processes
from offramp.methods._method import Method, build_one
from offramp.net import MultiExitNet, Tap, share
from offramp.outputs import Batch, ExitOutputs, State
from offramp.protocols import Terms
from offramp.running_statistics import batch_norms
from offramp.step import StepContext
from offramp.train import phases
from offramp.train.prepare import prepare_objective
from offramp.train.recipe import Recipe

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
"""The optimizers that a `Method` can name."""

Autocast = Callable[[], AbstractContextManager[Any]]


class StepTrainer:
    """Trains a network by a method, one batch at a time, with the method's network, tap, step and phases.

    >>> from offramp.methods import find
    >>> method = find("muse").build()
    >>> net = method.network(backbone, branch)  # or offramp.attach(backbone(), branch), if the method needs no more
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> trainer = offramp.StepTrainer(method, net, optimizer, input_shape=(3, 32, 32), epochs=10)
    >>> for epoch in range(10):
    ...     trainer.start_epoch(epoch)
    ...     for inputs, labels in loader:
    ...         terms = trainer.step(inputs, labels)  # loss terms by name, detached; their sum was minimised

    It works in one process. Create it before a learning rate scheduler: learned parts of the method's objective are
    added to the optimizer as one more parameter group.

    Args:
        method: from `offramp.methods.find(NAME).build(...)`.
        net: the network on its device, built by `method.network(backbone, branch)`.
        optimizer: over the parameters of the network.
        input_shape: (channels, height, width) of the inputs.
        epochs: number of epochs, which schedules of loss weights and phases depend on.
        held_out: held-out batches (inputs, labels), for methods that use them; iterated over repeatedly.
        autocast: creates the context in which the network runs, such as `lambda: torch.autocast("cuda",
            torch.bfloat16)`; default full precision.
        clip: maximum norm of the gradient; 0 disables clipping.
        tune: `all` trains as the method specifies, `exits` freezes the backbone, `mixed` trains the backbone first.
    Raises:
        ValueError: if the method cannot be executed completely: the network was not built by it, held-out data are
            missing, its step needs another optimizer, it has more phases than epochs, or several processes train.
    """

    @check_arguments
    def __init__(
        self,
        method: Method,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        input_shape: tuple[int, int, int],
        epochs: int,
        held_out: Iterable[Any] | None = None,
        autocast: Autocast = nullcontext,
        clip: float = 0.0,
        tune: Literal["all", "exits", "mixed"] = "all",
    ) -> None:
        recipe = Recipe(epochs=epochs, tune=tune)
        _refuse(method, net, optimizer, held_out)
        phases.refuse_net(recipe, method, net)
        self.method, self.net, self.spans = method, net, phases.spans(recipe, method)
        self.notes = prepare_objective(method, net, input_shape)
        self.trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if isinstance(method.objective, nn.Module):
            method.objective.to(next(net.parameters()).device)
            learned = [parameter for parameter in method.objective.parameters() if parameter.requires_grad]
            if learned:
                optimizer.add_param_group({"params": learned})
        batches = None if held_out is None else _endless(held_out)
        self.context = StepContext(
            SingleProcess(autocast),
            _Autocast(net, autocast),
            method.objective,
            optimizer,
            method.tap,
            clip,
            bare=net,
            held_out=None if batches is None else lambda: next(batches),
            norms=tuple(batch_norms(net).values()),
        )
        self.span, self.progress = self.spans[0], 0.0
        self.started: phases.Span | None = None

    def start_epoch(self, epoch: int) -> None:
        """Prepare network and objective for an epoch, counted from 0: training mode, frozen parts, a new phase.

        Momentum starts again in every phase.
        """
        self.span = phases.span_at(self.spans, epoch)
        self.progress = phases.progress(self.span, epoch)
        phases.start_epoch(self.net, self.method.objective, self.span.phase, self.trained)
        if epoch == self.span.first and self.started != self.span:
            if self.span.phase.begin:
                self.span.phase.begin(self.net)
            if self.span.first:
                self.context.optimizer.state.clear()
        self.started = self.span

    def step(self, inputs: Tensor, labels: Tensor, ids: Tensor | None = None) -> Terms:
        """One step of the method on a batch; returns its weighted loss terms, detached.

        Args:
            inputs: (B, channels, H, W) on the network's device.
            labels: class indices (B,) or soft labels (B, C).
            ids: (B,) identifiers of the samples; default: their positions.
        Raises:
            ValueError: if `start_epoch` was not called.
        """
        if self.started is None:
            raise ValueError("call start_epoch(epoch) before the first step of every epoch")
        ids = torch.arange(len(labels), device=labels.device) if ids is None else ids
        groups, rate = self.context.optimizer.param_groups, self.span.phase.rate
        before = [group["lr"] for group in groups]
        try:
            for group in groups:
                group["lr"] = group["lr"] * rate
            return phases.take_step(
                self.method, self.span.phase, self.context, Batch(inputs, labels, ids), self.progress
            )
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr


class SingleProcess:
    """The part of Lightning Fabric's interface that a step uses, for one process."""

    world_size = 1

    def __init__(self, autocast: Autocast = nullcontext) -> None:
        self.autocast = autocast

    def backward(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Backward pass of a loss."""
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def no_backward_sync(self, net: Any) -> AbstractContextManager[None]:
        """Nothing is synchronised in one process."""
        return nullcontext()


class _Autocast:
    """A network that runs under autocast."""

    def __init__(self, net: nn.Module, autocast: Autocast) -> None:
        self.net, self.autocast = net, autocast

    def __call__(self, inputs: State, tap: Tap = share, **options: Any) -> ExitOutputs:
        with self.autocast():
            outputs: ExitOutputs = self.net(inputs, tap=tap, **options)
        return ExitOutputs(outputs.logits.float(), *outputs[1:]) if _is_half(outputs.logits) else outputs


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _endless(batches: Iterable[Any]) -> Iterator[Batch]:
    """The batches, repeated endlessly.

    Raises:
        ValueError: if there are none.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            inputs, labels = batch[:2]
            yield Batch(inputs, labels, torch.arange(len(labels)))
        if empty:
            raise ValueError("held_out must have at least one batch, and must be iterable more than once")


def _refuse(method: Method, net: nn.Module, optimizer: torch.optim.Optimizer, held_out: Iterable[Any] | None) -> None:
    """Raise ValueError, with what to do, if the method cannot be carried out in full."""
    if method.check_network is not None:
        method.check_network(net)
    elif method.network is not build_one:
        raise ValueError("the method has a network of its own but no check_network, so nothing shows that it built net")
    elif not isinstance(net, MultiExitNet):
        raise ValueError(f"net must be a MultiExitNet for this method, got {type(net).__name__}")
    if method.needs_held_out and held_out is None:
        raise ValueError("this method learns from held-out batches: held_out must be given")
    kinds = tuple(OPTIMIZERS[name] for name in method.optimizers)
    if kinds and not isinstance(optimizer, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"this method looks ahead by the optimizer's own step: optimizer must be {names}")
    if processes() > 1:
        raise ValueError("StepTrainer works in one process; `offramp train --devices N` trains in several")
