"""EED (Lee & Lee 2021, Exit-Ensemble Distillation): every exit learns from the mean of all exits, or of some.

Family: ensemble. Fits: any network with 2 exits or more; features are compared where they are as wide as the final
exit's.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp.losses.cross_entropy import cross_entropy
from offramp.losses.distillation import kl, mse, soft_cross_entropy
from offramp.losses.hint import distance, total
from offramp.losses.softmax import exact
from offramp.methods._check import choice, exit_numbers, has_peers, not_negative, positions, positive
from offramp.methods._feature_adapter import Adapt, FeatureAdapter
from offramp.methods._method import Method, Terms
from offramp.methods._parameters import parameters_of
from offramp.outputs import Batch, ExitOutputs

Imitation = Literal["soft-ce", "kl", "mse"]
TeacherWeights = Literal["equal", "learned"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of EED.

    Attributes:
        alpha: weight of the distillation of logits.
        beta: weight of the distillation of features; 0 disables it.
        imitation: soft cross-entropy (soft-ce) or kl, which have the same gradient, or mse of raw logits.
        temperature: temperature T of soft-ce and kl.
        teachers: exits whose mean is the teacher, 1 the shallowest, -1 the final one; default all.
        final_learns: whether the final exit learns from the teacher too.
        adapt: features whose width differs from the final exit's are left out (off) or compared through a learned
            layer (linear); all gives every early exit such a layer.
        weights: weights of the teachers: equal, or learned during training.
    """

    alpha: float = 1.0
    beta: float = 1.0
    imitation: Imitation = "soft-ce"
    temperature: float = 3.0
    teachers: tuple[int, ...] | None = None
    final_learns: bool = True
    adapt: Adapt = "off"
    weights: TeacherWeights = "equal"

    def __post_init__(self) -> None:
        not_negative("alpha", self.alpha)
        not_negative("beta", self.beta)
        positive("temperature", self.temperature)
        choice("imitation", self.imitation, Imitation)
        choice("weights", self.weights, TeacherWeights)
        if self.teachers is not None:
            exit_numbers("teachers", self.teachers)
            if not self.teachers:
                raise ValueError(
                    "teachers must name at least one exit, 1 the shallowest and -1 the final one, got none"
                )

    def positions(self, exits: int) -> tuple[int, ...]:
        """0-based positions of the teachers among that many exits."""
        return tuple(range(exits)) if self.teachers is None else positions("teachers", self.teachers, exits)


@parameters_of(Settings)
def build(**parameters: Any) -> Method:
    """Eq. 8: L = sum_k { CE_k + alpha l_z(z_k, G_z) + beta l_f(F_k, G_f) }, G the detached mean over the teachers.

    l_z is T^2 H_T(G_z -> z_k), the paper's "KL" (softmax of the mean logits), or the mean squared difference of raw
    logits; l_f is the masked mean squared difference of pooled features. The released code multiplies its KL branch by
    0.1, the paper by 1: alpha .1 is the code. "DBT" in this paper (eq. 4) is teachers -1, final_learns off, beta 0; its
    "SD" the same with beta 1.

    Learned weights are not from the paper: G = sum_k w_k z_k (and F_k), w = softmax(a); a starts at 0, which is the
    mean. a gets gradients only from CE(sum_k w_k sg z_k), the term `ensemble`: those of the distillation would favour
    teachers that are easy to imitate over accurate ones. The record of every step contains w as `weights`.

    Raises:
        ValueError: if a value is out of range or no teacher is left.
    """
    settings = Settings(**parameters)
    return Method(EnsembleTeacher(settings, FeatureAdapter(settings.adapt)))


class EnsembleTeacher(nn.Module):
    """The objective of EED; adaptation layers and learned weights are trained with the run."""

    def __init__(self, settings: Settings, match: FeatureAdapter) -> None:
        super().__init__()
        self.settings = settings
        self.match = match
        self.mix = (
            nn.Parameter(torch.zeros(0)) if settings.weights == "learned" else None
        )  # logarithms, up to a constant

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check the exits and create adaptation layers; returns notes on features that are left out."""
        has_peers("eed", exits)
        teachers = self.settings.positions(exits)
        if self.settings.weights == "learned":
            self.mix = nn.Parameter(torch.zeros(len(teachers)))
        return self.match.create_layers(widths) if self.settings.beta else ()

    def forward(self, outputs: ExitOutputs, batch: Batch, progress: float) -> Terms:
        """Terms `ce`, `soft-ce`, `kl` or `mse`, `features` unless beta is 0, `ensemble` where weights are learned."""
        settings, logits = self.settings, outputs.logits
        has_peers("eed", len(logits))
        teachers = settings.positions(len(logits))
        students = logits if settings.final_learns else logits[:-1]
        mix = self._mix(len(teachers))
        ensemble = averaged([exact(logits[exit].detach()) for exit in teachers], mix)[None]
        target = ensemble.detach()
        terms = {
            "ce": cross_entropy(logits, batch.labels).sum(),
            settings.imitation: settings.alpha * self._imitate(students, target).sum(),
        }
        if settings.beta:
            terms["features"] = settings.beta * self._features(outputs, teachers, mix)
        if mix is not None:
            terms["ensemble"] = cross_entropy(ensemble, batch.labels).sum()
        return terms

    def logged_values(self) -> dict[str, Tensor]:
        """The weights, if they are learned: `weights`, one for each teacher."""
        return {} if self.mix is None else {"weights": self.mix.detach().softmax(0)}

    def _mix(self, teachers: int) -> Float[Tensor, "M"] | None:
        """Logarithms of the teachers' weights, None if all are equal."""
        if self.mix is not None and len(self.mix) != teachers:
            raise ValueError(
                f"learned weights of {teachers} teachers are needed, there are {len(self.mix)}: call "
                "objective.prepare_for_exits(exits=..., widths=...) before the optimizer is built"
            )
        return self.mix

    def _imitate(self, students: Float[Tensor, "S B C"], target: Float[Tensor, "1 B C"]) -> Float[Tensor, "S"]:
        settings = self.settings
        if settings.imitation == "mse":
            return mse(students, target)
        form = kl if settings.imitation == "kl" else soft_cross_entropy
        return settings.temperature**2 * form(students, target, temperature=settings.temperature)

    def _features(
        self, outputs: ExitOutputs, teachers: tuple[int, ...], mix: Float[Tensor, "M"] | None
    ) -> Float[Tensor, ""]:
        matched = self.match(outputs.features)
        teaching = [number for number, exit in enumerate(teachers) if matched[exit] is not None]
        if not teaching:
            return total([], like=outputs.logits)
        shown = [matched[exit] for exit in teachers]
        members = [exact(feature.detach()) for feature in shown if feature is not None]
        target = averaged(members, None if mix is None else torch.stack([mix[number] for number in teaching])).detach()
        distances = [
            distance(feature, target, reduction="mean", masked=True)
            for feature in (matched if self.settings.final_learns else matched[:-1])
            if feature is not None
        ]
        return total(distances, like=outputs.logits)


def averaged(members: list[Float[Tensor, "..."]], mix: Float[Tensor, "M"] | None) -> Float[Tensor, "..."]:
    """The mean of the members, or sum_k softmax(mix)_k member_k."""
    stacked = torch.stack(members)
    if mix is None:
        return stacked.mean(0)
    shares = mix.softmax(0).reshape(-1, *(1,) * (stacked.dim() - 1))
    # No matrix product: that would be rounded to bfloat16 where the network runs in it.
    return (shares * stacked).sum(0)
