"""BYOT (Zhang et al., ICCV 2019, Be Your Own Teacher; "SD"): every exit learns the final one's logits and features.

Family: final exit. Fits: any network with 2 exits or more; features are compared where they are as wide as the final
exit's.
"""

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl, soft_cross_entropy
from offramp.losses.hint import Reduction, distance, total
from offramp.methods._check import choice, exit_numbers, fraction, has_peers, not_negative, positions, positive
from offramp.methods._feature_adapter import Adapt, FeatureAdapter
from offramp.methods._method import Method, Terms
from offramp.methods._parameters import parameters_of
from offramp.outputs import Batch, ExitOutputs

Imitation = Literal["soft-ce", "kl"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of BYOT.

    Attributes:
        alpha: share a of the distillation term; the cross-entropy has 1 - a (the first commit of that code had 0.5).
        temperature: temperature T of the distillation.
        beta: weight of the feature term.
        t2: multiply the distillation term by T^2.
        final_ce_weight: weight of the final exit's cross-entropy; default 1 - alpha.
        imitation: distillation loss, soft cross-entropy (soft-ce) or kl; both have the same gradient, and differ by the
            teacher's entropy.
        features: sum or mean of squares over batch and width, or norm: un-squared, unmasked, of the whole batch.
        without_features: exits with no feature term, 1 the shallowest, -1 the final one.
        adapt: features whose width differs from the final exit's are left out (off) or compared through a learned
            layer (linear); all gives every early exit such a layer.
    """

    alpha: float = 0.1
    temperature: float = 3.0
    beta: float = 1e-6
    t2: bool = True
    final_ce_weight: float | None = None
    imitation: Imitation = "soft-ce"
    features: Reduction = "sum"
    without_features: tuple[int, ...] = ()
    adapt: Adapt = "off"

    def __post_init__(self) -> None:
        fraction("alpha", self.alpha)
        positive("temperature", self.temperature)
        not_negative("beta", self.beta)
        choice("imitation", self.imitation, Imitation)
        choice("features", self.features, Reduction)
        exit_numbers("without_features", self.without_features)
        not_negative("final_ce_weight", self.final_ce)

    @property
    def final_ce(self) -> float:
        """Weight of the final exit's cross-entropy."""
        return 1.0 - self.alpha if self.final_ce_weight is None else self.final_ce_weight

    @property
    def imitate(self) -> float:
        """Weight of the distillation term."""
        return self.alpha * (self.temperature**2 if self.t2 else 1.0)


@parameters_of(Settings)
def build(**parameters: Any) -> Method:
    """L = (1-a) sum_k CE_k + a T^2 sum_{k<K} H_T(sg z_K -> z_k) + beta sum_{k<K} Phi(F_k, sg F_K).

    Phi is the sum of squared differences over batch and width, wherever one of the two features is positive. Defaults
    are what luanyunteng/pytorch-be-your-own-teacher runs, the code that MSD, MUSE and EED build on. The conference
    paper gives the final exit's cross-entropy the weight 1: final_ce_weight 1. The authors' later journal code: alpha
    .3, beta .03, t2 off, final_ce_weight 1, features norm, without_features -2, adapt all.

    Raises:
        ValueError: if a value is out of range.
    """
    settings = Settings(**parameters)
    norm = settings.features == "norm" and settings.beta > 0
    whole = "features=norm is a norm over all its samples" if norm else ""
    return Method(OwnTeacher(settings, FeatureAdapter(settings.adapt)), whole_batch=whole)


class OwnTeacher(nn.Module):
    """The objective of BYOT; adaptation layers are trained with the run."""

    def __init__(self, settings: Settings, match: FeatureAdapter) -> None:
        super().__init__()
        self.settings = settings
        self.match = match

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check the exits and create adaptation layers; returns notes on features that are left out."""
        has_peers("byot", exits)
        left_out = positions("without_features", self.settings.without_features, exits)
        return self.match.create_layers(widths, left_out) if self.settings.beta else ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce`, `soft-ce` or `kl`, and `features` unless beta is 0."""
        settings, logits = self.settings, outputs.logits
        has_peers("byot", len(logits))
        ce = cross_entropy(logits, batch.labels)
        form = soft_cross_entropy if settings.imitation == "soft-ce" else kl
        imitated = form(logits[:-1], logits[-1:], temperature=settings.temperature)
        terms = {
            "ce": (1.0 - settings.alpha) * ce[:-1].sum() + settings.final_ce * ce[-1],
            settings.imitation: settings.imitate * imitated.sum(),
        }
        if settings.beta:
            terms["features"] = settings.beta * self._features(outputs)
        return terms

    def _features(self, outputs: ExitOutputs) -> Float[Tensor, ""]:
        left_out = positions("without_features", self.settings.without_features, len(outputs.logits))
        form = self.settings.features
        *students, teacher = self.match(outputs.features, left_out)
        distances = [
            distance(feature, teacher.detach(), reduction=form, masked=form != "norm")
            for feature in students
            if feature is not None
        ]
        return total(distances, like=outputs.logits)
