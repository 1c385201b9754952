"""The features of all exits in comparable form: exits of another width are left out, or adapted by a learned layer."""

from collections.abc import Collection, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from offramp.lookup import with_parameters
from offramp.methods._check import choice

Adapt = Literal["off", "linear", "all"]
Features = Sequence[Float[Tensor, "B ..."]]


class FeatureAdapter(nn.Module):
    """Makes each exit's feature or map as wide as the final exit's, or leaves it out; trained with the run.

    Args:
        adapt: "off" leaves out exits whose width differs from the final exit's; "linear" gives those a learned linear
            layer (a 1x1 convolution on maps); "all" gives one to every exit but the final one, as BYOT's journal code.
    """

    def __init__(self, adapt: Adapt) -> None:
        super().__init__()
        choice("adapt", adapt, Adapt)
        self.adapt = adapt
        self.layers = nn.ModuleDict()

    def create_layers(
        self, widths: Sequence[int], unused: Collection[int] = (), *, without: str = "method.beta=0"
    ) -> tuple[str, ...]:
        """Create the layers that features of these widths (one per exit) need; returns notes on what is left out.

        Args:
            unused: positions of exits whose features are compared with nothing: they get no layer and no note.
            without: the parameter that switches the comparison off.
        Raises:
            ValueError: if no early exit's features are as wide as the final exit's, so that nothing could be compared.
        """
        last = widths[-1]
        early = [exit for exit in range(len(widths) - 1) if exit not in unused]
        differing = [exit for exit in early if widths[exit] != last]
        if self.adapt == "off" and early and differing == early:
            early_widths = ", ".join(str(widths[exit]) for exit in early)
            raise with_parameters(
                ValueError(
                    "this method compares features, but no early exit's are as wide as the final exit's: "
                    f"{early_widths} against {last}; method.adapt=linear compares them through learned layers, "
                    f"{without} leaves the term out"
                ),
                "method.adapt",
                without.partition("=")[0],
            )
        if self.adapt == "off":
            return tuple(
                f"exit {exit + 1} has features of width {widths[exit]}, the final exit {last}: its feature term is "
                "left out (method.adapt=linear compares them through a learned layer)"
                for exit in differing
            )
        adapted = early if self.adapt == "all" else differing
        self.layers = nn.ModuleDict({str(exit): nn.Linear(widths[exit], last) for exit in adapted})
        return ()

    def forward(self, features: Features, unused: Collection[int] = ()) -> list[Tensor | None]:
        """One entry per exit, as wide as the last; None if an exit is left out.

        Raises:
            ValueError: if a layer is needed and `prepare_for_exits` was not called.
        """
        early = [
            None if exit in unused else self._fit(exit, feature, width(features[-1]))
            for exit, feature in enumerate(features[:-1])
        ]
        return [*early, features[-1]]

    def _fit(self, exit: int, feature: Tensor, last: int) -> Tensor | None:
        if str(exit) in self.layers:
            return apply_to_width(self.layers[str(exit)], feature)
        if self.adapt != "all" and width(feature) == last:
            return feature
        if self.adapt == "off":
            return None
        raise ValueError(
            f"adapt={self.adapt} needs a layer from width {width(feature)} to {last} at exit {exit + 1}: call "
            "objective.prepare_for_exits(exits=..., widths=...) before the optimizer is built"
        )


def width(feature: Float[Tensor, "B ..."]) -> int:
    """D of a pooled feature (B, D), of tokens (B, T, D) or of a map (B, D, H, W)."""
    return feature.shape[1] if feature.dim() == 4 else feature.shape[-1]


def apply_to_width(layer: nn.Module, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """A linear layer on the width of a feature, of tokens, or (as a 1x1 convolution) of a map."""
    if feature.dim() == 4:
        mapped: Tensor = layer(feature.movedim(1, -1)).movedim(-1, 1)
        return mapped
    out: Tensor = layer(feature)
    return out
