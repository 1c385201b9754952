"""Loss weights that are learned on held-out batches (HDKD, Wang & Li, AAAI 2021, Algorithm 1)."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offramp.losses.dense_distillation import Teachers, loss_vector, pairs
from offramp.methods._check import choice, fraction, has_peers, not_negative, positive
from offramp.methods._host_counter import HostCounter
from offramp.methods._method import Terms
from offramp.outputs import Batch, ExitOutputs

Init = Literal["ds", "ones", "dbt", "random"]
Rate = Literal["initial", "current"]
Ahead = Literal["plain", "optimizer"]
LossStatistics = Literal["batch", "running"]
Averages = Literal["held-out", "train"]


@dataclass(frozen=True, kw_only=True)
class Bilevel:
    """Parameters of HDKD, HDBT and HMSDNet.

    Attributes:
        name: the method's name, for messages.
        teachers: which exits teach.
        init: initial loss weights, see each method.
        weights: initial loss weights, instead of init: one per exit for the labels, then one per pair (teacher,
            student) in the order (2,1), (3,1), (3,2), (4,1) ...
        fixed: folder of a finished run of this method; its final loss weights are used and never updated (the paper's
            Fixed).
        temperature: temperature T of the distillation.
        detach_teachers: stop the gradient into the teachers.
        alpha: share a of the unweighted sum of cross-entropies in the held-out loss (the paper's ablation: 0, .1, .5,
            .9, 1).
        decay: decay of the moving averages E_k of the exits' losses.
        averages: the losses that E_k averages: on held-out batches one step ahead (held-out), or on the training
            batches (train).
        step_size: learning rate eps of the loss weights.
        xi: learning rate of the look-ahead step: the one at the start of the run (initial), or the current one, with
            which the loss weights change more slowly as it falls.
        look_ahead: the look-ahead step: gradient descent without momentum and weight decay as in the paper (plain), or
            the step that the optimizer takes (optimizer; SGD only).
        meta_every: update the loss weights every N steps; 0 keeps them fixed.
        clamp: keep the loss weights at 0 or above.
        renormalise: keep the sum of the loss weights constant; otherwise it drifts, which has the effect of another
            learning rate.
        val_bn: batch norms on held-out batches use the statistics of these batches (batch), or the running statistics
            before the step (running).
    """

    name: str
    teachers: Teachers
    init: Init
    weights: tuple[float, ...] = ()
    fixed: Path | None = None
    temperature: float = 3.0
    detach_teachers: bool = True
    alpha: float = 0.5
    decay: float = 0.9
    averages: Averages = "held-out"
    step_size: float = 1.0
    xi: Rate = "initial"
    look_ahead: Ahead = "plain"
    meta_every: int = 1
    clamp: bool = True
    renormalise: bool = False
    val_bn: LossStatistics = "batch"

    def __post_init__(self) -> None:
        choice("init", self.init, Init)
        choice("xi", self.xi, Rate)
        choice("look_ahead", self.look_ahead, Ahead)
        choice("val_bn", self.val_bn, LossStatistics)
        choice("averages", self.averages, Averages)
        positive("temperature", self.temperature)
        fraction("alpha", self.alpha)
        fraction("decay", self.decay)
        positive("step_size", self.step_size)
        not_negative("meta_every", float(self.meta_every))
        for weight in self.weights:
            if not math.isfinite(weight) or (self.clamp and weight < 0):
                raise ValueError(f"weights must be finite and, with clamp, at least 0, got {weight}")
        if self.weights and self.fixed is not None:
            raise ValueError("weights and fixed both set the loss weights: give one of them")

    @property
    def learns(self) -> bool:
        """Whether the weights change during the run."""
        return self.fixed is None and self.meta_every > 0


class LossWeights(nn.Module):
    """sum_m w_m l_m with the weights w and the averages E_k of the validation losses, both stored with the run."""

    weights: Tensor
    averages: Tensor
    steps: Tensor

    def __init__(self, settings: Bilevel) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("averages", torch.zeros(0))  # 0 where nothing was observed yet
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.counter = HostCounter("steps")

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Set the initial weights; returns no notes.

        Raises:
            ValueError: if there are too few exits, or the weights that were given are not as many as the losses.
        """
        self._check(exits)
        settings = self.settings
        values = weights_of(settings.fixed) if settings.fixed is not None else list(settings.weights)
        expected = exits + len(pairs(exits, settings.teachers))
        if values and len(values) != expected:
            where = f"the run {settings.fixed}" if settings.fixed is not None else "weights"
            raise ValueError(
                f"{where} gives {len(values)} weights, but {settings.name} with {exits} exits has {expected} losses: "
                f"{exits} of the labels and {expected - exits} of pairs of exits"
            )
        self.weights = torch.tensor(values) if values else first_weights(exits, settings.teachers, settings.init)
        self.averages = torch.zeros(exits)
        return ()

    def _check(self, exits: int) -> None:
        if self.settings.teachers != "none":
            has_peers(self.settings.name, exits)

    def losses(self, outputs: ExitOutputs, labels: Int[Tensor, "B"] | Float[Tensor, "B _"]) -> Float[Tensor, "M"]:
        """The losses l_m before they are weighted."""
        settings = self.settings
        return loss_vector(
            outputs.logits,
            labels,
            temperature=settings.temperature,
            teachers=settings.teachers,
            detach_teachers=settings.detach_teachers,
        )

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce` and, where exits teach, `soft-ce`.

        Raises:
            ValueError: if `prepare_for_exits` was not called.
        """
        self._check(len(outputs.logits))
        if not len(self.weights):
            raise ValueError(
                f"call objective.prepare_for_exits(exits=..., widths=...) before {self.settings.name} trains"
            )
        return self.terms(self.losses(outputs, batch.labels))

    def terms(self, losses: Float[Tensor, "M"]) -> Terms:
        """The weighted losses: those of the labels, those of the pairs."""
        weighted, exits = self.weights * losses, len(self.averages)
        terms = {"ce": weighted[:exits].sum()}
        if len(weighted) > exits:
            terms["soft-ce"] = weighted[exits:].sum()
        return terms

    def validation(self, ce: Float[Tensor, "E"]) -> Float[Tensor, ""]:
        """a sum_k CE_k + (1 - a) sum_k softplus(CE_k / E_k - 1), eq. 10; a loss not yet observed is its own average."""
        alpha, averages = self.settings.alpha, torch.where(self.averages == 0, ce.detach(), self.averages)
        return alpha * ce.sum() + (1.0 - alpha) * nn.functional.softplus(ce / averages - 1.0).sum()

    def observe(self, ce: Float[Tensor, "E"]) -> None:
        """E_k <- decay E_k + (1 - decay) CE_k, eq. 9; the first loss is taken as it is."""
        decay = self.settings.decay
        followed = decay * self.averages + (1.0 - decay) * ce
        self.averages.copy_(torch.where(self.averages == 0, ce, followed))

    def move(self, gradient: Float[Tensor, "M"]) -> None:
        """w <- w - step_size dL_val/dw; then not below 0, and with the same sum as before, if `renormalise`."""
        moved = self.weights - self.settings.step_size * gradient
        if self.settings.clamp:
            moved = moved.clamp_min(0.0)
        if self.settings.renormalise:
            total = moved.sum()  # weights that have no sum to be scaled to stay as they are
            moved = torch.where(total > 0, moved * (self.weights.sum() / total), self.weights)
        self.weights.copy_(moved)

    def due(self) -> bool:
        """Whether the weights are updated in this step; counts the steps."""
        return self.counter.due(self, self.settings.meta_every)

    def logged_values(self) -> dict[str, Tensor]:
        """The weights and the averages as they are now, for the run's record."""
        return {"weights": self.weights.clone(), "averages": self.averages.clone()}


def first_weights(exits: int, teachers: Teachers, init: Init) -> Float[Tensor, "M"]:
    """The weights at the start, labels first: see `offramp.methods.hdkd.build`."""
    chosen = pairs(exits, teachers)
    if init == "random":
        return torch.rand(exits + len(chosen))
    # By student: an exit learns equally from all later ones (ds), from each fully (ones), from the final one (dbt).
    forms: dict[Init, Callable[[int, int], float]] = {
        "ds": lambda teacher, student: 1.0 / (exits - 1 - student),
        "ones": lambda teacher, student: 1.0,
        "dbt": lambda teacher, student: float(teacher == exits - 1),
    }
    return torch.tensor([1.0] * exits + [forms[init](*pair) for pair in chosen])


def weights_of(run: Path) -> list[float]:
    """The weights that a run of the same method ended with, from its record.

    Raises:
        ValueError: if the folder has no record, it is damaged, or its last step has no weights learned so.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"fixed: {run} is not a run: it has no {path.name}")
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if b'"kind": "step"' in line]
    try:
        record = json.loads(lines[-1]) if lines else {}
    except ValueError:
        raise ValueError(f"fixed: the last step in {path} is damaged: it is not JSON") from None
    if not {"weights", "averages"} <= record.keys():  # `eed` writes weights too, of another kind
        raise ValueError(f"fixed: {run} has no loss weights: it must be a run of hdkd, hdbt or hmsdnet")
    return [float(weight) for weight in record["weights"]]
