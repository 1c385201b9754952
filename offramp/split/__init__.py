"""Any model as a network that exits can be attached to: cut after named layers, or built from your stages."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from offramp.net import Backbone
from offramp.split import cut_points, equivalence, exit_placement
from offramp.split.cut_points import ImageShape
from offramp.split.exit_placement import Place
from offramp.split.manual import by_hand
from offramp.split.random_state import same_random_state
from offramp.split.supported import check_supported
from offramp.split.to_backbone import assemble
from offramp.split.untraceable import Untraceable
from offramp.split.weights import load_state, state

__all__ = ["Place", "Untraceable", "by_hand", "load_state", "places", "split", "state"]


def split(
    model: nn.Module,
    exits_after: Sequence[str] | int,
    shape: ImageShape,
    *,
    make: Callable[[], nn.Module] | None = None,
    device: str | torch.device | None = None,
    check: bool = True,
) -> Backbone:
    """Cut a model into stages; they hold the model's own modules under their own names, nothing is copied.

    The graph of the forward pass is cut. A state is one map or sequence, or a
    tuple with the layer's own value last; maps (B, H, W, D) are passed on as (B, D, H, W). What does not depend on the
    samples is computed again after the cut. Image size and conditions on shapes are those of `shape`, the number of
    samples is free.

    Args:
        exits_after: the layers (names as in `model.named_modules()`) to attach exits to, in order; or the number of
            exits, the final one included, which are then placed at equal shares of the multiply-adds.
        shape: (channels, height, width) of the images.
        make: builds the same model again, newly initialised; with it, blocks that branches sample start as the model's
            own do.
        device: where the network will train, and where it is compared with the model; default where the model is.
        check: run the model and the network on a batch of 1 and one of 3 images, in evaluation and in training, and
            compare outputs, gradients and buffers. A model on the meta device is not run.

    Raises:
        ValueError: naming the nearest layer, the right order, the smallest image size, what cannot cross a cut, or the
            first stage whose output, gradients or buffers are not the model's.
        Untraceable: naming the line that could not be traced; `by_hand` takes stages then.
    """
    check_supported(model)
    with same_random_state():
        names = [] if isinstance(exits_after, int) else list(exits_after)
        points = cut_points.find(model, shape, names)
        if isinstance(exits_after, int):
            names = exit_placement.equal(points, exits_after)
        backbone = assemble(model, points, names, shape, make)
        if check:
            macs = sum(points.traced.macs.values())
            layer_names = cut_points.own_names(model, names)
            equivalence.check(model, backbone, layer_names, device=device, macs=macs)
    return backbone


def places(model: nn.Module, shape: ImageShape) -> list[Place]:
    """The possible places of exits in a model, with their shares of the multiply-adds.

    Raises:
        ValueError: as `split` does.
    """
    check_supported(model)
    return exit_placement.places(cut_points.find(model, shape))
