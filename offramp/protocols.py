"""Optional abilities of networks, branches and objectives, selected by `isinstance`.

An object has an ability if it has all attributes of the protocol. The names are specific to offramp, so that a module
from elsewhere does not match by accident.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from offramp.outputs import Batch, ExitOutputs

Terms = dict[str, Tensor]
"""Weighted scalar losses by name. Their SUM is minimised, so what is logged is what is trained."""

Progress = float | Float[Tensor, ""]
"""epoch / epochs of the phase, in [0, 1), constant within an epoch; a tensor if the method has `tensor_progress`."""

Objective = Callable[[ExitOutputs, Batch, Any], Terms]
"""(outputs, batch, progress) -> terms; see `Progress`.

A function, or an nn.Module if it has state or learned parts. Those are trained and saved in checkpoints with the run,
and never exported.
"""


@runtime_checkable
class PreparedObjective(Protocol):
    """An objective that must know the exits before the optimizer is created."""

    def prepare_for_exits(self, exits: int, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Check the network and create learned parts; returns notes for the user.

        Args:
            exits: E, the number of exits, the final one included.
            widths: feature width D of every exit.
        Raises:
            ValueError: if the method cannot train such a network.
        """
        ...


@runtime_checkable
class MapCheckingObjective(Protocol):
    """An objective that compares feature maps and must know their shapes."""

    def check_exit_maps(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Called after `prepare_for_exits` with the shape of every exit's map, without the batch dimension.

        Raises:
            ValueError: if these maps cannot be compared.
        """
        ...


@runtime_checkable
class LoggingObjective(Protocol):
    """An objective that learns values worth recording, such as loss weights."""

    def logged_values(self) -> dict[str, Tensor]:
        """Tensors by name, written into the record of every step."""
        ...


@runtime_checkable
class ChainedBranch(Protocol):
    """A branch that may pass a carry to later exits.

    If `chained_exit` is true, later exits need its carry: it runs even if its exit is disabled.
    """

    chained_exit: bool


@runtime_checkable
class EarlierExitUser(Protocol):
    """A part of a branch whose result may depend on earlier exits and that can be set to ignore them."""

    ignores_earlier_exits: bool

    @property
    def depends_on_earlier_exits(self) -> bool:
        """Whether its result depends on earlier exits unless it ignores them."""
        ...


@runtime_checkable
class Reconstructible(Protocol):
    """A module that can be constructed again with new random weights; see `offramp.net.fresh`."""

    construct_fresh: Callable[[], nn.Module]


@runtime_checkable
class SketchBlock(Protocol):
    """A block that says what represents its stage in a `sketch` exit: a constructor, or None if nothing can."""

    sketch_block: Callable[[], nn.Module] | None


@runtime_checkable
class InnerWidth(Protocol):
    """A block with an inner width that exits imitate (the `planes` of a ResNet block)."""

    exit_width: int


@runtime_checkable
class EedStrides(Protocol):
    """A block that gives the strides of the `eed` exit behind its stage."""

    eed_strides: tuple[int, ...]


@runtime_checkable
class ExitHeadSource(Protocol):
    """A head of a network that was published with exits; it creates the head of any of them."""

    def exit_head(self, width: int, classes: int) -> nn.Module:
        """The head of an early exit.

        Args:
            width: D, channels at the exit.
            classes: C.
        """
        ...


@runtime_checkable
class DescribedBlock(Protocol):
    """A block that gives the name under which `offramp info` lists it."""

    @property
    def block_kind(self) -> str:
        """The name."""
        ...


def is_chained(branch: nn.Module) -> bool:
    """Whether later exits need the carry of this branch."""
    return isinstance(branch, ChainedBranch) and branch.chained_exit
