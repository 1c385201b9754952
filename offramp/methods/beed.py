"""BEED (Lee & Lee 2022, Online KD with Multi-Exits): every exit learns from a weighted ensemble of all exits.

Family: ensemble. Fits: 2 exits or more with last maps of equal size; others with beta 0.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.lookup import with_parameters
from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl
from offramp.losses.hint import distance, total
from offramp.losses.schedules import rising_powers
from offramp.losses.softmax import exact
from offramp.methods._check import choice, has_peers, not_negative, positive
from offramp.methods._feature_adapter import Adapt, FeatureAdapter
from offramp.methods._method import Method, Terms
from offramp.methods._parameters import parameters_of
from offramp.outputs import Batch, ExitOutputs

Mode = Literal["beed", "eed", "kd"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of BEED and of its code's two other modes.

    Attributes:
        mode: beed; eed (all a_k = 1); kd (the final exit alone teaches).
        importance: B (lambda in the supplement, beta in the code): how much more each deeper exit counts as teacher.
        balance: A (gamma in the supplement, alpha in the code) of mode beed; default 1.520875^(1/(K-1)), 1.15 at K=4.
        temperature: temperature T of the distillation.
        alpha: weight of the distillation of logits; default 1, in mode kd 0.1.
        beta: weight of the distillation of maps; default 0.1, in mode kd 0.025; 0 disables it.
        adapt: maps whose width differs from the final exit's are left out (off) or compared through a learned layer
            (linear); all gives every early exit such a layer.
    """

    mode: Mode = "beed"
    importance: float = 1.6
    balance: float | None = None
    temperature: float = 3.0
    alpha: float | None = None
    beta: float | None = None
    adapt: Adapt = "off"

    def __post_init__(self) -> None:
        choice("mode", self.mode, Mode)
        positive("importance", self.importance)
        positive("temperature", self.temperature)
        if self.balance is not None:
            positive("balance", self.balance)
        not_negative("alpha", self.logits_weight)
        not_negative("beta", self.maps_weight)

    @property
    def logits_weight(self) -> float:
        """`alpha`, or the mode's default."""
        return (0.1 if self.mode == "kd" else 1.0) if self.alpha is None else self.alpha

    @property
    def maps_weight(self) -> float:
        """`beta`, or the mode's default."""
        return (0.025 if self.mode == "kd" else 0.1) if self.beta is None else self.beta


@parameters_of(Settings)
def build(**parameters: Any) -> Method:
    """L = sum_k [ (2-a_k) CE_k + a_k alpha T^2 KL_T(G_z -> z_k) ] + beta sum_k mean (F_k - G_f)^2.

    F_k are the maps before pooling; G_z and G_f are detached means weighted by w_k ~ B^(k-1); a_k = A^(K-k). This is
    what the code hjdw2/BEED computes, and these are its three modes. Its mode EED weights the ensemble by B too (plain
    EED: importance 1), and until March 2023 did not distil into exits 2 and 3. Mode kd: sum_k CE_k + alpha sum_{k<K}
    T^2 KL_T(sg z_K -> z_k) + beta sum_{k<K} mean (F_k - sg F_K)^2.

    Raises:
        ValueError: if a value is out of range.
    """
    settings = Settings(**parameters)
    return Method(WeightedEnsemble(settings, FeatureAdapter(settings.adapt)))


def balancing(balance: float | None, exits: int) -> float:
    """A for a network with that many exits; the default keeps A^(K-1) at 1.520875, what 1.15 is for four.

    Raises:
        ValueError: if a cross-entropy weight 2 - A^(K-1) were negative.
    """
    if balance is None:
        return float(1.520875 ** (1.0 / (exits - 1)))
    largest = balance ** (exits - 1)
    if largest > 2.0:
        raise ValueError(
            f"balance {balance} makes the weight of the first exit's cross-entropy, 2 - {balance}^{exits - 1} = "
            f"{2.0 - largest:.3f}, negative: with {exits} exits it can be at most {2.0 ** (1.0 / (exits - 1)):.4f}"
        )
    return balance


def importances(importance: float, logits: Float[Tensor, "E B C"]) -> Float[Tensor, "E"]:
    """w_k = B^(k-1) / sum_j B^(j-1): the exits' shares of the ensemble, the deepest largest for B > 1."""
    powers = rising_powers(importance, logits)
    return powers / powers.sum()


class WeightedEnsemble(nn.Module):
    """The objective of BEED and of its code's two other modes; adaptation layers are trained with the run."""

    def __init__(self, settings: Settings, match: FeatureAdapter) -> None:
        super().__init__()
        self.settings = settings
        self.match = match

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check the exits and A, create adaptation layers; returns notes on maps that are left out."""
        has_peers("beed", exits)
        if self.settings.mode == "beed":
            balancing(self.settings.balance, exits)
        return self.match.create_layers(widths) if self.settings.maps_weight else ()

    def check_exit_maps(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Called once after `prepare_for_exits`, with the shape of every exit's map without its batch.

        Raises:
            ValueError: if maps that are to be compared differ in size.
        """
        last = shapes[-1]
        compared = [shape for shape in shapes if self.match.adapt != "off" or shape[0] == last[0]]
        if self.settings.maps_weight and len({shape[1:] for shape in compared if len(shape) == 3}) > 1:
            written = ", ".join("×".join(map(str, shape[1:])) for shape in compared)
            message = (
                f"beed compares the maps of the exits, but theirs are of different sizes: {written}; take exits that "
                "end in equal maps (branch=beed or branch=sketch), or method.beta=0"
            )
            raise with_parameters(ValueError(message), "branch", "method.beta")

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce`, `kl`, and `features` unless beta is 0."""
        settings, logits = self.settings, outputs.logits
        has_peers("beed", len(logits))
        ce = cross_entropy(logits, batch.labels)
        if settings.mode == "kd":
            terms = {"ce": ce.sum(), "kl": kl(logits[:-1], logits[-1:], temperature=settings.temperature).sum()}
        else:
            terms = self._from_ensemble(logits, ce)
        terms["kl"] = settings.logits_weight * settings.temperature**2 * terms["kl"]
        if settings.maps_weight:
            terms["features"] = settings.maps_weight * self._features(outputs)
        return terms

    def _from_ensemble(self, logits: Float[Tensor, "E B C"], ce: Float[Tensor, "E"]) -> Terms:
        settings = self.settings
        base = balancing(settings.balance, len(logits)) if settings.mode == "beed" else 1.0
        a = rising_powers(base, logits).flip(0)
        shares = importances(settings.importance, logits)
        target = (shares[:, None, None] * exact(logits.detach())).sum(0, keepdim=True)
        imitated = kl(logits, target, temperature=settings.temperature)
        return {"ce": ((2.0 - a) * ce).sum(), "kl": (a * imitated).sum()}

    def _features(self, outputs: ExitOutputs) -> Float[Tensor, ""]:
        students = matched = self.match(outputs.maps)
        if self.settings.mode == "kd":
            students, target = matched[:-1], matched[-1].detach()
        else:
            target = ensemble(matched, importances(self.settings.importance, outputs.logits))
        distances = [distance(feature, target, reduction="mean") for feature in students if feature is not None]
        return total(distances, like=outputs.logits)


def ensemble(maps: list[Tensor | None], shares: Float[Tensor, "E"]) -> Float[Tensor, "B ..."]:
    """Detached mean of the maps, weighted by the shares of those exits that have one.

    Raises:
        ValueError: if the maps differ in shape.
    """
    kept = [exit for exit, features in enumerate(maps) if features is not None]
    present = [exact(features.detach()) for features in maps if features is not None]
    shapes = sorted({tuple(features.shape[1:]) for features in present})
    if len(shapes) > 1:
        raise ValueError(
            f"the maps of the exits have different shapes, {shapes}, and cannot be averaged: use exits that end in "
            "equal maps (branch beed or sketch), or set beta to 0"
        )
    stacked = torch.stack(present)
    weights = torch.stack([shares[exit] for exit in kept])
    weights = weights / weights.sum()
    return (weights.view(-1, *[1] * (stacked.dim() - 1)) * stacked).sum(0)
