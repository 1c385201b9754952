"""MUSE (In-Network Mutual Learning): every exit learns the logits of all others and the features of the final one.

Family: mutual. Fits: any network with 2 exits or more; features are compared where they are as wide as the final
exit's.
"""

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.hint import distance, total
from offramp.losses.kl_table import kl_table
from offramp.losses.schedules import cosine, weighted
from offramp.methods._check import choice, fraction, has_peers, not_negative, positive
from offramp.methods._feature_adapter import Adapt, FeatureAdapter
from offramp.methods._method import Method, Terms
from offramp.methods._parameters import parameters_of
from offramp.outputs import Batch, ExitOutputs
from offramp.protocols import Progress

Schedule = Literal["cosine", "constant", "off"]
FeatureReduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of MUSE and MSD.

    Attributes:
        name: the method's name, for messages.
        alpha: share of the mutual term; the cross-entropy has the weight 1 - alpha, at the final exit too.
        temperature: temperature T of the mutual term (tau in the paper).
        beta_begin: weight of the feature term in the first epoch.
        beta_end: weight of the feature term that the schedule approaches in the last epoch.
        schedule: beta over the run: cosine from beta_begin to beta_end, constant at beta_begin, or off (no such term).
        t2: multiply the mutual term by T^2.
        detach_teachers: stop the gradient into the logits of the teaching exit.
        detach_superpeer: stop the gradient into the final exit's features.
        reverse_kl: use KL(student || teacher) instead of KL(teacher || student).
        features: sum of squared feature differences over batch and width, or their mean.
        adapt: features whose width differs from the final exit's are left out (off) or compared through a learned
            layer (linear); all gives every early exit such a layer.
    """

    name: str
    alpha: float = 0.5
    temperature: float = 3.0
    beta_begin: float = 1e-6
    beta_end: float = 1e-7
    schedule: Schedule = "cosine"
    t2: bool = True
    detach_teachers: bool = True
    detach_superpeer: bool = True
    reverse_kl: bool = False
    features: FeatureReduction = "sum"
    adapt: Adapt = "off"

    def __post_init__(self) -> None:
        fraction("alpha", self.alpha)
        positive("temperature", self.temperature)
        not_negative("beta_begin", self.beta_begin)
        not_negative("beta_end", self.beta_end)
        choice("schedule", self.schedule, Schedule)
        choice("features", self.features, FeatureReduction)

    def beta(self, progress: Progress) -> Progress:
        """Weight of the feature term in this epoch."""
        if self.schedule == "cosine":
            return cosine(self.beta_begin, self.beta_end, progress)
        return self.beta_begin if self.schedule == "constant" else 0.0

    @property
    def compares_features(self) -> bool:
        """Whether there is a feature term at any time."""
        return any(self.beta(progress) > 0.0 for progress in (0.0, 1.0))


@parameters_of(Settings, omit=("reverse_kl",))
def build(**parameters: Any) -> Method:
    """Eq. 5: L = (1-a) sum_k CE_k + a T^2/(K-1) sum_{l!=k} KL_T(sg z_l -> z_k) + beta(e) sum_{k<K} |F_k - sg F_K|^2.

    a is alpha. T^2 and the detached teachers are not printed in the paper; the author's earlier code has both. Eq. 6,
    the cosine schedule of beta, is a misprint, corrected here. The paper gives no beta for networks whose exits differ
    in width; `schedule off` leaves the feature term out.

    Data sets:
        ImageNet: alpha .1, temperature 20
        ImageNet, MSDNet: alpha .1, temperature 20, schedule off
        CIFAR-100, ResNet152: beta_begin 1e-5, beta_end 1e-6
        CIFAR-100, wide ResNets: beta_begin 1e-5, beta_end 1e-7

    Raises:
        ValueError: if a value is out of range.
    """
    return method(Settings(name="muse", reverse_kl=False, **parameters))


def method(settings: Settings) -> Method:
    """The method with these settings."""
    annealed = settings.schedule == "cosine" and settings.compares_features and settings.beta_begin != settings.beta_end
    scheduled = ("features",) if annealed else ()
    return Method(Mutual(settings, FeatureAdapter(settings.adapt)), scheduled=scheduled, tensor_progress=True)


class Mutual(nn.Module):
    """The objective of MUSE and MSD; adaptation layers are trained with the run."""

    def __init__(self, settings: Settings, match: FeatureAdapter) -> None:
        super().__init__()
        self.settings = settings
        self.match = match

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check the exits and create adaptation layers; returns notes on features that are left out."""
        has_peers(self.settings.name, exits)
        return (
            self.match.create_layers(widths, without="method.schedule=off") if self.settings.compares_features else ()
        )

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: Progress) -> Terms:
        """Terms `ce`, `kl`, and `features` unless their weight is 0 for the whole run."""
        settings, logits = self.settings, outputs.logits
        has_peers(settings.name, len(logits))
        factor = settings.alpha * (settings.temperature**2 if settings.t2 else 1.0) / (len(logits) - 1)
        terms = {
            "ce": (1.0 - settings.alpha) * cross_entropy(logits, batch.labels).sum(),
            "kl": factor * self._mutual(logits).sum(),  # no exit teaches itself: the diagonal is 0
        }
        if settings.compares_features:
            terms["features"] = weighted(settings.beta(progress), self._features(outputs))
        return terms

    def _mutual(self, logits: Float[Tensor, "E B C"]) -> Float[Tensor, "E E"]:
        settings = self.settings
        return kl_table(
            logits,
            temperature=settings.temperature,
            detach_teachers=settings.detach_teachers,
            reverse=settings.reverse_kl,
        )

    def _features(self, outputs: ExitOutputs) -> Float[Tensor, ""]:
        *students, superpeer = self.match(outputs.features)
        if self.settings.detach_superpeer:
            superpeer = superpeer.detach()
        distances = [
            distance(feature, superpeer, reduction=self.settings.features)
            for feature in students
            if feature is not None
        ]
        return total(distances, like=outputs.logits)
