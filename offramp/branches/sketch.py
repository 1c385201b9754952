"""The network's own first block of each deeper stage, made afresh (MUSE §3.1; MSD's sampling-based branches)."""

from torch import nn

from offramp.branches._stages import check_exit, shapes
from offramp.meta import run_on_meta, written
from offramp.net import Backbone, Branch, fresh


def build(backbone: Backbone, exit: int, classes: int, *, sbc_extra: int = 0) -> nn.Module:
    """One fresh block of each deeper stage, then a fresh head: a sketch of the rest of the network.

    Works on any backbone whose stages change shape in their first block only. The branch's maps have the shapes of
    the stages that it imitates, its features the width of the backbone's.

    Args:
        exit: number of the exit, from 0; it stands behind stage `exit`.
        classes: must be what the backbone's head answers.
        sbc_extra: the stage, counted from 1 as the papers count groups, that lends a second block; 0 for none. 3 gives
            the costs that MUSE prints for ResNet152 (its text says one block per group).

    Raises:
        ValueError: where the shapes cannot be chained (both are named), or an option does not fit the backbone.
    """
    check_exit("sketch", backbone, exit)
    stages = backbone.stages
    along, state = shapes(backbone)
    for number, (first, leaves) in enumerate(along[exit + 1 :], exit + 2):
        if first != leaves:
            raise ValueError(
                f"sketch cannot chain stage {number}: its first block leaves {written(first)}, but what follows takes "
                f"{written(leaves)} as the whole stage leaves it; use another branch or cut the stages differently"
            )
    if sbc_extra and not (2 <= sbc_extra <= len(stages) and len(stages[sbc_extra - 1]) > 1):
        raise ValueError(f"sbc_extra must be a stage from 2 to {len(stages)} with two blocks or more, got {sbc_extra}")
    answers = run_on_meta(backbone.head, state)[0].shape[1]
    if answers != classes:
        raise ValueError(f"sketch copies the network's head, which answers {answers} classes, not {classes}")
    body: list[nn.Module] = []
    for number, stage in enumerate(stages[exit + 1 :], exit + 2):
        body.extend(fresh(block) for block in list(stage)[: 2 if number == sbc_extra else 1])
    return Branch(nn.Sequential(*body), fresh(backbone.head))
