"""L2W-DEN (Han et al., ECCV 2022): a small network learns a weight for each sample at each exit.

Family: learned weights. Fits: any network; needs optimizer sgd.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offramp.losses.cross_entropy import sample_cross_entropy
from offramp.losses.distributed import gathered, global_mean, global_sum, least, processes, weighing, weight_of
from offramp.losses.schedules import cosine
from offramp.losses.softmax import confidence
from offramp.methods import _forward_product as forward_product
from offramp.methods import _look_ahead as look_ahead
from offramp.methods._check import choice, not_negative, positive
from offramp.methods._host_counter import HostCounter
from offramp.methods._method import Method, Terms
from offramp.methods._parameters import parameters_of
from offramp.net import share
from offramp.outputs import Batch, ExitOutputs
from offramp.step import StepContext

Centre = Literal["col", "row", "mat"]
Sees = Literal["loss", "conf", "both"]
Reduction = Literal["exit-mean", "sample-mean"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of L2W.

    Attributes:
        epsilon: largest distance of w from 1 is 2 epsilon. There is no bound at 0, as in the code.
        centre: w has the mean 1 over the exits of a sample (col), over the batch at each exit (row), or overall (mat).
        sees: input of the weighting network phi for a sample: its loss at every exit, its confidences, or both.
        hidden: width of phi's hidden layer.
        target: p, the ratio of the shares of samples that exit at successive exits; below 1, most exit early.
        meta_every: update phi every N batches.
        meta_lr: learning rate of phi (Adam), annealed to 0 by a cosine over the epochs.
        meta_weight_decay: weight decay of phi.
        meta_reduction: loss of the other half: the sum over exits of the mean over the samples of each, as the code,
            or the mean over all samples.
    """

    epsilon: float = 0.8
    centre: Centre = "col"
    sees: Sees = "loss"
    hidden: int = 500
    target: float = 0.75
    meta_every: int = 1
    meta_lr: float = 1e-4
    meta_weight_decay: float = 1e-4
    meta_reduction: Reduction = "exit-mean"

    def __post_init__(self) -> None:
        choice("centre", self.centre, Centre)
        choice("sees", self.sees, Sees)
        choice("meta_reduction", self.meta_reduction, Reduction)
        for name in ("target", "meta_lr", "hidden", "meta_every"):
            positive(name, float(getattr(self, name)))
        not_negative("epsilon", self.epsilon)
        not_negative("meta_weight_decay", self.meta_weight_decay)


@parameters_of(Settings)
def build(**parameters: Any) -> Method:
    """L = sum_k mean_b w_bk CE_bk; w is learned from the loss, one step ahead, of the exits that samples take.

    Each batch is divided into two halves A and B, its samples in turn, with an optimizer step on each: look one step
    ahead on A (by the optimizer's own momentum and weight decay), improve the weighting network phi by the loss on B
    there, step on A with the new weights; then the same with A and B exchanged. On B exit k counts for a share q_k ~
    p^k of the samples: the most confident among those that no earlier exit took. The released code differentiates
    twice; here the same number is computed by one forward-mode product. Defaults are the CIFAR values of its README
    (batch 1024, lr .8, cosine).

    Data sets:
        ImageNet: epsilon .3, centre mat, meta_every 100

    Raises:
        ValueError: if a value is out of range.
    """
    objective = SampleWeights(Settings(**parameters))
    return Method(objective, step=learn, optimizers=("sgd",), turns=2, annealed=("meta_lr",))


class SampleWeights(nn.Module):
    """The objective of L2W: the network phi that weights samples, and its Adam, stored with the run.

    phi's weights are buffers: the run's own optimizer must not train them.
    """

    NAMES = ("w1", "b1", "w2", "b2")
    batches: Tensor
    taken: Tensor
    decays: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self.register_buffer("decays", torch.tensor([0.9, 0.999], dtype=torch.float64), persistent=False)
        self.counter = HostCounter("batches")

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Make phi for that many exits."""
        seen = exits * (2 if self.settings.sees == "both" else 1)
        first, second = nn.Linear(seen, self.settings.hidden), nn.Linear(self.settings.hidden, exits)
        phi = (first.weight, first.bias, second.weight, second.bias)
        for name, tensor in zip(self.NAMES, phi, strict=True):
            self.register_buffer(name, tensor.detach().clone())
            self.register_buffer(f"{name}_mean", torch.zeros_like(tensor))
            self.register_buffer(f"{name}_square", torch.zeros_like(tensor))
        return ()

    def phi(self) -> list[Tensor]:
        """phi's weights.

        Raises:
            ValueError: if `prepare_for_exits` was not called.
        """
        if not hasattr(self, "w1"):
            raise ValueError("call objective.prepare_for_exits(exits=..., widths=...) before l2w trains")
        return [getattr(self, name) for name in self.NAMES]

    def weights(
        self, phi: list[Tensor], logits: Float[Tensor, "E B C"], losses: Float[Tensor, "E B"]
    ) -> Float[Tensor, "E B"]:
        """w of every sample at every exit; what phi sees is detached."""
        answered = self.answered(phi, logits, losses)
        return 1.0 + centred(answered, self.settings.centre, self.settings.epsilon)

    def answered(
        self, phi: list[Tensor], logits: Float[Tensor, "E B C"], losses: Float[Tensor, "E B"]
    ) -> Float[Tensor, "E B"]:
        """Output of phi for every sample at every exit, in (-1, 1)."""
        parts = {"loss": [losses], "conf": [confidence(logits)], "both": [losses, confidence(logits)]}
        features = torch.cat(parts[self.settings.sees]).detach().T.to(phi[0].dtype)
        with torch.autocast(features.device.type, enabled=False):
            inner = torch.relu(nn.functional.linear(features, phi[0], phi[1]))
            return torch.tanh(nn.functional.linear(inner, phi[2], phi[3])).T

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Term `ce`, weighted; the weights get no gradient."""
        losses = sample_cross_entropy(outputs.logits, batch.labels)
        with torch.no_grad():
            weights = self.weights(self.phi(), outputs.logits, losses)
        return {"ce": (weights * losses).mean(1).sum()}

    def due(self) -> bool:
        """Whether phi learns at this batch; counts the batches."""
        return self.counter.due(self, self.settings.meta_every)

    def improve(self, gradient: tuple[Tensor, ...], progress: float) -> None:
        """One step of Adam (Kingma & Ba 2015, with the decay in the gradient) on phi."""
        settings = self.settings
        rate = cosine(settings.meta_lr, 0.0, progress)
        self.taken += 1
        biased = 1.0 - torch.pow(self.decays, self.taken)
        for name, derivative in zip(self.NAMES, gradient, strict=True):
            weight, mean, square = (getattr(self, name + end) for end in ("", "_mean", "_square"))
            moved = derivative + settings.meta_weight_decay * weight
            mean.mul_(0.9).add_(moved, alpha=0.1)
            square.mul_(0.999).addcmul_(moved, moved, value=0.001)
            root = (square / biased[1]).sqrt() + 1e-8
            weight.sub_(rate * (mean / biased[0]) / root)


def centred(values: Float[Tensor, "E B"], centre: Centre, epsilon: float) -> Float[Tensor, "E B"]:
    """epsilon (u - mean u), the mean over exits, over the batch of all processes, or over both; its own transpose."""
    mean = values.mean({"col": (0,), "row": (1,), "mat": (0, 1)}[centre], keepdim=True)
    return epsilon * (values - (mean if centre == "col" or processes() == 1 else global_mean(mean)))


def shares(target: float, exits: int) -> list[float]:
    """q_k = p^k / sum_j p^j: the share of the samples that leave at exit k."""
    powers = [target**exit for exit in range(1, exits + 1)]
    return [power / sum(powers) for power in powers]


def selected(sure: Float[Tensor, "E B"], target: float) -> list[Int[Tensor, "_"]]:
    """The samples that count at each exit: its surest among those not taken before; the last exit takes the rest.

    How many they are does not depend on the data, so nothing waits for a GPU.
    """
    exits, size = sure.shape
    free = torch.ones(size, dtype=torch.bool, device=sure.device)
    by_exit, left = [], size
    for exit, share_ in enumerate(shares(target, exits)):
        count = left if exit == exits - 1 else int(size * share_)
        order = sure[exit].argsort(descending=True, stable=True)
        free_first = free[order].to(torch.uint8).argsort(descending=True, stable=True)
        leaving = order[free_first[:count]]
        free.index_fill_(0, leaving, False)
        by_exit.append(leaving)
        left -= count
    return by_exit


def meta_loss(logits: Float[Tensor, "E B C"], labels: Tensor, target: float, reduction: Reduction) -> Float[Tensor, ""]:
    """Loss at the exit where each sample leaves: sum over exits of the mean over its samples, or the mean.

    Over the samples of all processes: the value of the whole, with the gradient of this process's samples.
    """
    losses = sample_cross_entropy(logits, labels)
    sure, first = gathered(confidence(logits.detach()))
    total = losses.new_zeros(())
    for exit, chosen in enumerate(selected(sure, target)):
        rows = chosen if processes() == 1 else chosen[(chosen >= first) & (chosen < first + len(labels))] - first
        if len(chosen):
            total = total + losses[exit, rows].sum() / (len(chosen) if reduction == "exit-mean" else sure.shape[1])
    return global_sum(total)


def learn(context: StepContext, batch: Batch, progress: float) -> Terms:
    """Two optimizer steps, one on each half of the batch, each after phi learned from the other half."""
    objective: Any = context.objective
    due = objective.due()
    if least(len(batch.ids), batch.ids) < 4:  # a batch norm cannot train on a single sample
        return context.update(objective(context.outputs(batch), batch, progress))
    # interleaved, so that the shares of several processes divide as the whole batch does
    halves = [Batch(*(tensor[start::2] for tensor in batch)) for start in (0, 1)]
    terms = []
    for here, other in (halves, halves[::-1]):
        with weighing(weight_of(len(here.ids), here.inputs)):
            thrown = look_ahead.rng_state(here.inputs.device)
            outputs = context.outputs(here)
            if due:
                objective.improve(phi_gradient(context, here, other, outputs, thrown), progress)
            terms.append(context.update(objective(outputs, here, progress)))
    return {name: (terms[0][name] + terms[1][name]) / 2 for name in terms[0]}


def phi_gradient(
    context: StepContext, here: Batch, other: Batch, outputs: ExitOutputs, thrown: look_ahead.RngState
) -> tuple[Tensor, ...]:
    """Gradient by phi of what the other half loses after a step on this one; keeps the graph of the outputs."""
    objective: Any = context.objective
    assert context.bare is not None
    net, settings, optimizer = context.bare, objective.settings, context.optimizer
    losses = sample_cross_entropy(outputs.logits, here.labels)
    phi = [tensor.clone().requires_grad_() for tensor in objective.phi()]
    answered = objective.answered(phi, outputs.logits, losses)
    weights = 1.0 + centred(answered.detach(), settings.centre, settings.epsilon)
    theta = look_ahead.trained(net)
    gradient = context.gradient((weights * losses).mean(1).sum())
    rates = look_ahead.rates(theta, optimizer)
    next_parameters, reach = look_ahead.own_step(theta, gradient, optimizer, rates, nesterov=False)
    seen = look_ahead.outputs_with(net, next_parameters, other.inputs, share).logits
    pull = look_ahead.gradients(
        meta_loss(seen, other.labels, settings.target, settings.meta_reduction), next_parameters
    )

    def again(parameters: look_ahead.Tensors) -> Tensor:
        logits = look_ahead.outputs_with(net, parameters, here.inputs, context.tap).logits
        return sample_cross_entropy(logits, here.labels) / len(here.ids)

    with look_ahead.with_rng_state(thrown, here.inputs.device):
        by_weight = forward_product.product(again, theta, look_ahead.along(pull, reach))
    by_answer = centred(by_weight.to(answered.dtype), settings.centre, settings.epsilon)
    return tuple(global_mean(derivative) for derivative in torch.autograd.grad(answered, phi, by_answer))
