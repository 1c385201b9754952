"""The step of methods that learn loss weights on held-out batches (HDKD, Wang & Li, AAAI 2021, Algorithm 1)."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distributed import global_mean, weighing, weight_of
from offramp.methods import _forward_product as forward_product
from offramp.methods import _look_ahead as look_ahead
from offramp.methods._loss_weights import Bilevel, LossWeights
from offramp.methods._method import Method, Terms
from offramp.net import share
from offramp.outputs import Batch
from offramp.step import StepContext


def method(settings: Bilevel) -> Method:
    """The method with these settings: its own step, unless the weights stay as they are."""
    objective = LossWeights(settings)
    if not settings.learns:
        return Method(objective)
    optimizers = ("sgd",) if settings.look_ahead == "optimizer" else ()
    return Method(objective, step=learn, needs_held_out=True, optimizers=optimizers)


def learn(context: StepContext, batch: Batch, progress: float) -> Terms:
    """One step of Algorithm 1: move the weights by how they change the held-out loss one step ahead, then the network.

    The network's own step runs its forward pass again: keeping the look-ahead's graph for it would need that memory
    while the held-out batch needs as much. In float32 the product reuses the results of the look-ahead's convolutions.
    """
    objective: Any = context.objective
    device = batch.inputs.device
    same: AbstractContextManager[None] = nullcontext()
    if objective.due():
        same = look_ahead.with_rng_state(look_ahead.rng_state(device), device)
        objective.move(weight_gradient(context, batch))
    with same:
        outputs = context.outputs(batch)
    return context.update(objective(outputs, batch, progress))


def weight_gradient(context: StepContext, batch: Batch) -> Float[Tensor, "M"]:
    """dL_val(theta') / dw: how every weight changes the held-out loss one step ahead; the averages are updated.

    Raises:
        ValueError: if nothing was held out.
    """
    objective: Any = context.objective
    if context.held_out is None or context.bare is None:
        raise ValueError(NEEDS_HELD_OUT)
    net, settings, optimizer, device = context.bare, objective.settings, context.optimizer, batch.inputs.device
    theta, thrown = look_ahead.trained(net), look_ahead.rng_state(device)

    def losses(parameters: look_ahead.Tensors) -> Tensor:
        outputs = look_ahead.outputs_with(net, parameters, batch.inputs, context.tap)
        vector: Tensor = objective.losses(outputs, batch.labels)
        return vector

    with context.fabric.autocast(), forward_product.RecordedConvolutions() as convolved:
        vector = losses(theta)
        loss = (objective.weights * vector).sum()
    gradient = look_ahead.gradients(loss, theta)
    training_ce = vector.detach()[: len(objective.averages)]
    del loss, vector  # and their graph: the held-out pass is where most memory is in use
    rates = look_ahead.rates(theta, optimizer, initial=settings.xi == "initial")
    step = (
        partial(look_ahead.own_step, optimizer=optimizer)
        if settings.look_ahead == "optimizer"
        else look_ahead.plain_step
    )
    next_parameters, reach = step(theta, gradient, rates=rates)
    del gradient  # as large as the network
    held = context.held_out()
    with weighing(weight_of(len(held.ids), held.inputs)):
        direction = look_ahead.along(held_out_gradient(net, objective, next_parameters, held), reach)
    if settings.averages == "train":
        objective.observe(global_mean(training_ce))
    del next_parameters
    with look_ahead.with_rng_state(thrown, device):
        return global_mean(forward_product.product(losses, theta, direction, convolved))


NEEDS_HELD_OUT = "the loss weights are learned on the val split, but nothing is held out: set holdout above 0"


def held_out_gradient(
    net: nn.Module, objective: LossWeights, next_parameters: look_ahead.Tensors, held: Batch
) -> look_ahead.Tensors:
    """Gradient of the held-out loss at theta'; then the moving averages are updated.

    No tap is applied, because the derivative itself is needed. The mean over all processes is taken before the
    softplus, so that several processes compute what one would.
    """
    with look_ahead.batch_norms(net, running=objective.settings.val_bn == "running"):
        ce = cross_entropy(look_ahead.outputs_with(net, next_parameters, held.inputs, share).logits, held.labels)
    observed = global_mean(ce).requires_grad_()
    pull = torch.autograd.grad(objective.validation(observed), observed)[0]
    pulled = look_ahead.gradients((pull * ce).sum(), next_parameters)
    if objective.settings.averages == "held-out":
        objective.observe(observed.detach())
    return pulled
