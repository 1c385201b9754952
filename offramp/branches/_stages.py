"""What a branch must know of the backbone: shapes, widths and strides. Runs on the meta device."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from offramp.meta_device import Shape, blank, remembered, run_on_meta, shape_of, written
from offramp.net import Backbone
from offramp.outputs import State
from offramp.protocols import ExitHeadSource, InnerWidth

MapShape = tuple[int, int, int]


StateShape = Shape | tuple[Shape, ...]


def shapes(backbone: Backbone, until: int | None = None) -> tuple[list[tuple[StateShape, ...]], State]:
    """The shapes (without the batch) after every block of every stage, and the last state (meta).

    For inputs of the shape that the network is made for; of the first `until` stages, all by default.
    """
    state: State = blank(nn.Sequential(*backbone.stages), backbone.shape)
    indices, path = [], list[int]()
    for stage in backbone.stages[:until]:
        path.append(id(stage))
        after, state = remembered(("shapes", backbone.shape, *path), partial(_along, stage, state))
        indices.append(after)
    return indices, state


def _along(stage: nn.Sequential, state: State) -> tuple[tuple[StateShape, ...], State]:
    """The shapes after every block of a stage, and its last state."""
    after = []
    for block in stage:
        state = run_on_meta(block, state)
        after.append(shape_of(state))
    return tuple(after), state


def coarsest(shape: StateShape) -> Shape:
    """The shape of the coarsest map, the last, where a stage passes on several; else the shape itself."""
    parts = [part for part in shape if isinstance(part, tuple)]
    return parts[-1] if parts else tuple(size for size in shape if isinstance(size, int))


def always(backbone: Backbone) -> str:
    """The exit structures that fit whatever the stages pass on, for a sentence."""
    return "`own` and `linear` exits" if isinstance(backbone.head, ExitHeadSource) else "`linear` exits"


def check_exit(kind: str, backbone: Backbone, exit: int) -> None:
    """Refuse an exit behind a stage that does not exist, or behind the last one (the backbone's head is there).

    Raises:
        ValueError: naming the exits that are possible.
    """
    last = len(backbone.stages) - 2
    if last < 0:
        raise ValueError(f"{kind} needs a network of two stages or more, this one has {last + 2}")
    if not 0 <= exit <= last:
        raise ValueError(f"{kind} has exits 0 to {last} (counted from 0) on a network of {last + 2} stages, got {exit}")


def maps(kind: str, backbone: Backbone) -> list[MapShape]:
    """(channels, height, width) after every stage.

    Raises:
        ValueError: if a stage passes on anything but one map (tokens, several scales).
    """
    shapes_of_maps: list[MapShape] = []
    for number, (*_, leaves) in enumerate(shapes(backbone)[0], 1):
        sizes = [size for size in leaves if isinstance(size, int)]
        if len(sizes) != 3 or len(leaves) != 3:
            raise ValueError(
                f"{kind} exits need one map (channels, height, width) after every stage, "
                f"but stage {number} passes on {written(leaves)}; {always(backbone)} fit"
            )
        shapes_of_maps.append((sizes[0], sizes[1], sizes[2]))
    return shapes_of_maps


class StageStep(NamedTuple):
    """One deeper stage as a branch imitates it: the width it should leave and the factor by which it shrinks maps."""

    width: int
    stride: int


def steps(
    kind: str, backbone: Backbone, exit: int, widths: Sequence[int] | None = None, *, inside: bool = True
) -> tuple[int, list[StageStep]] | None:
    """The width at the tap of an exit, and one step per deeper stage (EED, Table III; BEED supplement, Fig. 1).

    The last step has the width of the backbone's own features, so that features can be compared. The steps before it
    have the width inside the stage's blocks (`exit_width` of its first block) or, where blocks have none, of its maps.
    With `inside=False` all have the width of the maps (TOFD). Returns None behind a stem, that is behind the first
    stage where the second does not shrink the maps: the papers have no exit there.

    Args:
        widths: widths to take instead, one per stage from the second on; deeper exits take the last of them.

    Raises:
        ValueError: if the exit does not exist, the stages have no maps, or the number of widths is wrong.
    """
    check_exit(kind, backbone, exit)
    along = maps(kind, backbone)
    deeper = range(exit + 1, len(along))
    strides = [max(1, round(along[stage - 1][1] / along[stage][1])) for stage in deeper]
    if exit == 0 and strides[0] == 1 and along[0][1] > 1:
        return None
    if widths is None:
        blocks = [backbone.stages[stage][0] if inside else None for stage in deeper]
        inner = [
            block.exit_width if isinstance(block, InnerWidth) else along[stage][0]
            for block, stage in zip(blocks, deeper, strict=True)
        ]
        chosen = [*inner[:-1], along[-1][0]]
    elif len(widths) != len(along) - 1 or min(widths) < 1:
        raise ValueError(f"{kind} needs {len(along) - 1} widths of at least 1 on this network, got {list(widths)}")
    else:
        chosen = list(widths)[exit:]
    return along[exit][0], [StageStep(*step) for step in zip(chosen, strides, strict=True)]
