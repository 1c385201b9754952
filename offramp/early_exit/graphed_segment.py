"""A segment whose kernels a GPU starts all at once: one CUDA graph for every size of batch, in powers of two."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from offramp.cuda_graphs import capture, waits

Outputs = tuple[Any, tuple[Tensor, ...], Tensor]
"""State, carry and logits."""
T = TypeVar("T")


class _Captured(NamedTuple):
    """A segment for batches of one size: where its inputs go, and what computes its outputs from them."""

    inputs: tuple[Tensor, ...]
    compute: Callable[[], Outputs]


class GraphedSegment:
    """A segment, (state, carry) -> (state, carry, logits), in evaluation mode and inference mode.

    A batch is filled up to the next power of two with samples of before, whose outputs are not returned. The outputs
    hold until the next call, which is all that the early-exit loop needs.

    Args:
        segment: of `offramp.net.segments`, on the device.
        device: on a CPU the segment itself runs, on batches that are filled up.
    """

    def __init__(self, segment: Any, device: torch.device) -> None:
        self.segment, self.device = segment, device
        self.sizes: dict[int, _Captured] = {}

    def __call__(self, state: Any, carry: tuple[Tensor, ...]) -> Outputs:
        """Run on a batch of any size."""
        tensors = (*(state if isinstance(state, tuple) else (state,)), *carry)
        samples = len(tensors[0])
        size = 1 << (samples - 1).bit_length()
        if size not in self.sizes:
            inputs = tuple(buffer(tensor, size) for tensor in tensors)
            places = len(tensors) - len(carry)
            entering = inputs[:places] if isinstance(state, tuple) else inputs[0]
            self.sizes[size] = _Captured(inputs, captured(self._computing(entering, inputs[places:]), self.device))
        ready = self.sizes[size]
        for here, new in zip(ready.inputs, tensors, strict=True):
            here[:samples].copy_(new)
        onward, carry_after, logits = ready.compute()
        return _first(onward, samples), _first(carry_after, samples), logits[:samples]

    def _computing(self, state: Any, carry: tuple[Tensor, ...]) -> Callable[[], Outputs]:
        return lambda: cast(Outputs, self.segment(state, carry))


def captured(compute: Callable[[], T], device: torch.device) -> Callable[[], T]:
    """What computes `compute` on the tensors that it reads and writes, again and again: on a GPU a graph.

    Raises:
        ValueError: if it waits for the GPU.
    """
    if device.type != "cuda":
        return compute
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    outer = torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        compute()  # which may make constants
        with waits() as places:
            compute()
    outer.wait_stream(stream)
    if places:
        raise ValueError(
            f"the network waits for the GPU ({places[0]}), so that its segments cannot be CUDA graphs: take the "
            "runtime torch or torch-bf16 instead"
        )
    with capture(device) as graph:
        outputs = compute()

    def replay() -> T:
        graph.replay()
        return outputs

    return replay


def _first(state: Any, samples: int) -> Any:
    """The first samples of a tensor, or of every tensor of a tuple."""
    return tuple(part[:samples] for part in state) if isinstance(state, tuple) else state[:samples]


def buffer(tensor: Tensor, size: int) -> Tensor:
    """Memory for `size` samples like these, in their memory format; zeros, so that no unused one is NaN."""
    zeros = torch.zeros((size, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    last = tensor.dim() == 4 and tensor.stride(1) == 1
    return zeros.contiguous(memory_format=torch.channels_last) if last else zeros
