"""One image through all segments in ONNX Runtime, in memory that is made once. Runs without torch.

Every segment writes its states to where the next one reads them; nothing is copied but the image and the logits.
`benchmarks/onnx_binding.py` measures what this saves.
"""

from collections.abc import Sequence
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.sessions import LOGITS, ArraySegment, OnnxSegment
from offramp.text import one_line

State = tuple[tuple[Any, ...], tuple[Any, ...]]
"""State and carry."""


class SingleImage:
    """Segments for batches of one, with memory for each thread that runs them."""

    def __init__(self, segments: Sequence[ArraySegment]) -> None:
        self.unbound = tuple(segments)
        self.per_thread = local()

    def segments(self) -> tuple[ArraySegment, ...]:
        """The segments, bound to memory of this thread if all of them run in ONNX Runtime; else unchanged.

        They must run in order, from the first one on; the states that they return are empty (`state` has them).

        Raises:
            ValueError: if a segment fails, or gives tensors of other shapes than its entry in the manifest says.
        """
        onnx = [segment for segment in self.unbound if isinstance(segment, OnnxSegment)]
        if len(onnx) < len(self.unbound):
            return self.unbound
        if not hasattr(self.per_thread, "segments"):
            self.per_thread.segments, self.per_thread.between = _bound(onnx)
        bound: tuple[ArraySegment, ...] = self.per_thread.segments
        return bound

    def state(self, passed: int) -> State:
        """Copies of state and carry after the first `passed` bound segments, as last run in this thread."""
        states, carries = self.per_thread.between[passed - 1]
        return tuple(_copy(value) for value in states), tuple(_copy(value) for value in carries)


def _bound(segments: Sequence[OnnxSegment]) -> tuple[tuple[ArraySegment, ...], tuple[State, ...]]:
    """The segments, and ONNX Runtime's values after each of them: its state and carry, which the next one reads.

    The segments run once, on zeros, which checks their shapes.
    """
    import onnxruntime

    (port,) = segments[0].spec.takes_state
    state: Any = np.zeros((1, *port.shape), port.dtype)
    carry: Any = ()
    inputs = [onnxruntime.OrtValue.ortvalue_from_numpy(state)]
    bound, between = list[ArraySegment](), list[State]()
    for segment in segments:
        state, carry, logits = segment(state, carry)
        outputs = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in (logits, *state, *carry)]
        binding = segment.session.io_binding()
        for port, value in zip(segment.spec.takes_state + segment.spec.takes_carry, inputs, strict=True):
            binding.bind_ortvalue_input(port.name, value)
        names = [LOGITS, *(port.name for port in segment.spec.gives_state + segment.spec.gives_carry)]
        for name, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        bound.append(_runner(segment, binding, outputs[0], None if bound else inputs[0]))
        inputs = outputs[1:]
        between.append((tuple(inputs[: len(state)]), tuple(inputs[len(state) :])))
    return tuple(bound), tuple(between)


def _runner(segment: OnnxSegment, binding: Any, logits: Any, image: Any) -> ArraySegment:
    """A bound segment.

    Args:
        image: where to write the image that the first segment takes; None for the others.
    """

    def run(state: Any, carry: Any) -> tuple[tuple[()], tuple[()], NDArray[Any]]:
        try:
            if image is not None:
                if list(state.shape) != image.shape():
                    raise ValueError(f"it takes an image of {image.shape()}, not {list(state.shape)}")
                image.update_inplace(np.ascontiguousarray(state, np.float32))
            segment.session.run_with_iobinding(binding)
        except Exception as error:  # its exceptions share no base class
            raise ValueError(f"{segment.spec.file} failed in ONNX Runtime: {one_line(str(error), 300)}") from None
        return (), (), logits.numpy()  # until the next call, which a policy's `step` allows for

    return run


def _copy(value: Any) -> NDArray[Any]:
    """What a value of ONNX Runtime holds now; its own `numpy()` may be the same memory."""
    return np.array(value.numpy())
