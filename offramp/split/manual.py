"""Stages that the user provides, for models whose forward pass cannot be traced."""

from collections.abc import Sequence

from torch import Tensor, nn

from offramp.meta_device import blank, run_on_meta, shape_of, written
from offramp.net import Backbone
from offramp.outputs import State


class CompletedHead(nn.Module):
    """A head that returns logits alone, completed with its input: (B, C) -> (logits, feature, map)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C), the state's own map, and it pooled: (B, D) for maps (B, D, H, W) and sequences (B, T, D)."""
        logits: Tensor = self.model(state)
        map = state if isinstance(state, Tensor) else state[-1]
        pooled = map.flatten(2).mean(2) if map.dim() == 4 else map.mean(1) if map.dim() == 3 else map
        return logits, pooled, map


def by_hand(stages: Sequence[nn.Module], head: nn.Module, shape: tuple[int, int, int]) -> Backbone:
    """A network from its stages: the first takes the images, each returns a state, the head turns the last to logits.

    A state is a tensor, or a tuple of tensors, with the batch first everywhere.

    Args:
        head: returns logits (B, C), or (logits, feature (B, D), map).
        shape: (channels, height, width) of the images.

    Raises:
        ValueError: naming the stage that does not take what the one before it passes on, or passes on no such state.
    """
    if not stages:
        raise ValueError("a network needs one stage or more, got none")
    blocks = tuple(stage if isinstance(stage, nn.Sequential) else nn.Sequential(stage) for stage in stages)
    state: State = blank(nn.Sequential(*blocks, head), shape)
    for number, block in enumerate(blocks, 1):
        state = _next(f"stage {number}", block, state)
        tensors = state if isinstance(state, tuple) else (state,)
        if not all(isinstance(tensor, Tensor) and tensor.shape[:1] == (1,) for tensor in tensors):
            raise ValueError(
                f"stage {number} passes on something other than tensors whose first dimension is the batch"
            )
    output = _next("the head", head, state)
    if isinstance(output, Tensor):
        head = CompletedHead(head)
    elif not (isinstance(output, tuple) and len(output) == 3):
        raise ValueError("the head must return logits (B, C), or logits, feature (B, D) and map")
    return Backbone(blocks, head, shape)


def _next(what: str, module: nn.Module, state: State) -> State:
    try:
        next_state: State = run_on_meta(module, state)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{what} does not take {written(shape_of(state))}: {reason}") from None
    return next_state
