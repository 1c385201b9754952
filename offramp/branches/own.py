"""The exits that a network was published with: a new copy of its head at each exit (MSDNet's classifiers)."""

from torch import nn

from offramp.branches._stages import check_exit, coarsest, shapes
from offramp.net import Backbone, Branch
from offramp.protocols import ExitHeadSource


def build(backbone: Backbone, exit: int, classes: int) -> nn.Module:
    """The network's own head for the width of the stage's output, created by the head's `exit_head(width, classes)`.

    On MSDNet for small images all features are 128 wide; for large images each is as wide as its stage's output, so
    that losses that compare features skip them.

    Args:
        exit: number of the exit, from 0; it is attached to stage `exit`.
        classes: number of classes C.

    Raises:
        ValueError: if the network was published without exits, or there is no such exit.
    """
    check_exit("own", backbone, exit)
    if not isinstance(backbone.head, ExitHeadSource):
        raise ValueError("own needs a network that was published with exits (msdnet); this one was not, take `sketch`")
    head = backbone.head.exit_head(coarsest(shapes(backbone, exit + 1)[0][-1][-1])[0], classes)
    return Branch(nn.Identity(), head)
