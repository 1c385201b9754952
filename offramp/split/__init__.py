"""Any model as a network that exits can be attached to: cut behind named layers, or given in stages by hand."""

from collections.abc import Callable, Sequence

from torch import nn

from offramp.net import Backbone
from offramp.split import exit_placement
from offramp.split import layers as found_layers
from offramp.split.exit_placement import Place
from offramp.split.fx_trace import Untraceable
from offramp.split.layers import Image
from offramp.split.manual import by_hand
from offramp.split.to_backbone import assemble
from offramp.split.weights import load_state, state

__all__ = ["Place", "Untraceable", "by_hand", "load_state", "places", "split", "state"]


def split(
    model: nn.Module,
    after: Sequence[str] | int,
    shape: Image,
    *,
    make: Callable[[], nn.Module] | None = None,
) -> Backbone:
    """Cut a model into stages; they hold the model's own modules under their own names, nothing is copied.

    The graph of the forward pass is cut, with everything that has to pass a cut. A state is one map or sequence, or a
    tuple with the layer's own value last; maps (B, H, W, D) are handed on as (B, D, H, W). What does not depend on the
    samples is computed again behind the cut. Image size and conditions on shapes are those of `shape`, the number of
    samples is free.

    Args:
        after: the layers (names as in `model.named_modules()`) after which exits are to stand, in order; or the number
            of exits, the final one included, to place them at equal shares of the multiply-adds.
        shape: (channels, height, width) of the images.
        make: builds the same model again, newly initialised; with it, blocks that branches sample start as the model's
            own do.

    Raises:
        ValueError: naming the nearest layer, the right order, the smallest image size, or what cannot pass a cut.
        Untraceable: naming the line that could not be traced; `by_hand` takes stages then.
    """
    names = [] if isinstance(after, int) else list(after)
    layers = found_layers.find(model, shape, names)
    if isinstance(after, int):
        names = exit_placement.equal(layers, after)
    return assemble(model, layers, names, shape, make)


def places(model: nn.Module, shape: Image) -> list[Place]:
    """Where exits can stand in a model, and at which share of the multiply-adds.

    Raises:
        ValueError: as `split` does.
    """
    return exit_placement.places(found_layers.find(model, shape))
