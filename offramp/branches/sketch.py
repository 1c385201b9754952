"""A new copy of the first block of each deeper stage (MUSE §3.1; MSD's sampling-based branches)."""

from torch import nn

from offramp.branches._stages import StateShape, always, check_exit, shapes
from offramp.lookup import with_parameters
from offramp.meta_device import run_on_meta, written
from offramp.net import Backbone, Branch, fresh
from offramp.protocols import SketchBlock


def build(backbone: Backbone, exit: int, classes: int, *, sbc_extra: int = 0) -> nn.Module:
    """One new block for each deeper group of blocks, then a new head: a small version of the rest of the network.

    A group is a sequence of blocks whose outputs have the same shape. In most networks it is a stage; in a stage within
    which the shape changes (VGG, MobileNetV2), the first block of each group is copied. A block may define what
    represents its stage: `sketch_block()` creates it (PyramidNet, whose blocks all differ in width), and `sketch_block
    = None` excludes such exits (MSDNet). The maps in the branch have the shapes of the stages that they replace.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C, the same as the backbone's.
        sbc_extra: the stage, counted from 1 as in the papers, of which a second block is copied; 0: none. 3
            gives the costs that MUSE reports for ResNet152 (its text says one block per group).

    Raises:
        ValueError: if no small number of blocks can represent a stage (naming the exits that fit), or an option does
            not fit.
    """
    check_exit("sketch", backbone, exit)
    stages = backbone.stages
    along, state = shapes(backbone)
    drawn = [_first_of_groups(stage, after) for stage, after in zip(stages, along, strict=True)]
    _check_chain(backbone, exit, along, drawn)
    if sbc_extra and not (2 <= sbc_extra <= len(stages) and len(stages[sbc_extra - 1]) > 1):
        raise ValueError(f"sbc_extra must be a stage from 2 to {len(stages)} with two blocks or more, got {sbc_extra}")
    present = run_on_meta(backbone.head, state)[0].shape[1]
    if present != classes:
        raise ValueError(f"sketch copies the network's head, which has {present} classes, not {classes}")
    body: list[nn.Module] = []
    for number, stage in enumerate(stages[exit + 1 :], exit + 2):
        picked = sorted({*(drawn[number - 1] or ()), 1} if number == sbc_extra else drawn[number - 1] or ())
        body.extend(_sample(stage[index]) for index in picked)
    return Branch(nn.Sequential(*body), fresh(backbone.head))


def _first_of_groups(stage: nn.Sequential, after: tuple[StateShape, ...]) -> list[int] | None:
    """The blocks that represent a stage, by number; None if it would need more than half of them."""
    if isinstance(stage[0], SketchBlock):
        return None if stage[0].sketch_block is None else [0]
    first = [0, *(index for index in range(1, len(stage)) if after[index] != after[index - 1])]
    return first if len(first) <= (len(stage) + 1) // 2 else None


def _sample(block: nn.Module) -> nn.Module:
    if isinstance(block, SketchBlock) and block.sketch_block is not None:
        return block.sketch_block()
    return fresh(block)


def _check_chain(
    backbone: Backbone, exit: int, along: list[tuple[StateShape, ...]], drawn: list[list[int] | None]
) -> None:
    """Refuse an exit whose deeper stages cannot all be sampled."""
    broken = [number for number, blocks in enumerate(drawn) if blocks is None and number > exit]
    if not broken:
        return
    deepest = broken[-1]
    fitting = ", ".join(str(number) for number in range(deepest + 1, len(along)))
    hint = f"it fits behind stage {fitting}" if fitting else "it fits nowhere on this network"
    first, leaves = written(along[deepest][0]), written(along[deepest][-1])
    message = (
        f"sketch cannot chain stage {deepest + 1}: its first block leaves {first}, the whole stage {leaves}, "
        f"and no short sequence of its blocks does the same; {hint}, {always(backbone)} fit everywhere "
        "(methods that compare features then need method.adapt=linear)"
    )
    raise with_parameters(ValueError(message), "method.adapt")
