"""A segment as an ONNX file, with the batch as its one free dimension."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from offramp.bundle.manifest import SegmentSpec, TensorSpec
from offramp.bundle.sessions import LOGITS
from offramp.outputs import Carry, State

EXAMPLE = 3  # samples in the traced batch: 0 and 1 are special to torch.export
LARGEST = 2_000_000_000  # bytes: one protobuf message holds no more than 2 GiB


class _Flat(nn.Module):
    """A segment that takes state and carry as one row of tensors, and gives logits, then state and carry."""

    def __init__(self, segment: nn.Module, states: int, packed: bool, last: bool) -> None:
        super().__init__()
        self.segment, self.states, self.packed, self.last = segment, states, packed, last

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(state..., carry...) -> (logits (B, C), state..., carry...); the last segment gives logits only."""
        state = tensors[: self.states] if self.packed else tensors[0]
        state, carry, logits = self.segment(state, tensors[self.states :])
        outputs = () if self.last else (*_row(state), *carry)
        # a tensor that is handed on as it came, or twice, would have two names in the file
        return (logits, *(tensor.clone() for tensor in outputs))


def export_segments(
    segments: Sequence[nn.Module], exits: Sequence[int], shape: tuple[int, int, int]
) -> Iterator[tuple[bytes, SegmentSpec]]:
    """Segments that follow each other as ONNX, each with its entry in the manifest; errors as in `export_segment`.

    Args:
        segments: in eval mode, in float32 on the CPU, as `offramp.net.segments` makes them.
        exits: which of the network's exits each ends at, from 0.
        shape: one input's (channels, height, width).
    """
    state: State = torch.zeros(EXAMPLE, *shape)
    carry: Carry = ()
    for number, (exit, segment) in enumerate(zip(exits, segments, strict=True), 1):
        model, spec, state, carry = export_segment(
            segment, state, carry, file=f"segment-{number}.onnx", exit=exit, last=number == len(segments)
        )
        yield model, spec


def export_segment(
    segment: nn.Module, state: State, carry: Carry, *, file: str, exit: int, last: bool
) -> tuple[bytes, SegmentSpec, State, Carry]:
    """Trace a segment and write it as ONNX.

    Args:
        segment: in eval mode; (state, carry) -> (state, carry, logits).
        state: an example of `EXAMPLE` samples; of the first segment, inputs.
        carry: what the segment before handed along.
        file: what its file will be called.
        exit: which of the network's exits it ends at, from 0.
        last: nothing comes after it.
    Returns:
        The file's content, its entry in the manifest, and state and carry for the next segment.
    Raises:
        ValueError: if the segment cannot be exported, with the reason.
        ImportError: if the exporter's packages are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ImportError("exporting needs onnx and onnxscript: pip install 'offramp[export]'") from None
    with torch.no_grad():
        state_after, carry_after, _ = segment(state, carry)
    spec = SegmentSpec(
        file=file,
        exit=exit,
        takes_state=_ports("state", _row(state)),
        takes_carry=_ports("carry", carry),
        gives_state=() if last else _ports("next_state", _row(state_after)),
        gives_carry=() if last else _ports("next_carry", carry_after),
    )
    flat = _Flat(segment, len(_row(state)), isinstance(state, tuple), last).eval()
    return _traced(flat, (*_row(state), *carry), spec), spec, state_after, carry_after


def _traced(flat: nn.Module, tensors: tuple[Tensor, ...], spec: SegmentSpec) -> bytes:
    if sum(p.numel() * p.element_size() for p in flat.state_dict().values()) > LARGEST:
        raise ValueError(
            f"{spec.file} would exceed the {LARGEST // 10**9} GB that one ONNX file holds: enable more exits"
        )
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings(), operators_kept():
            warnings.simplefilter("ignore")  # the exporter's own; what it makes is compared with the network
            program: Any = torch.onnx.export(
                flat,
                tensors,
                dynamo=True,
                verbose=False,
                input_names=[port.name for port in spec.takes_state + spec.takes_carry],
                output_names=[LOGITS, *(port.name for port in spec.gives_state + spec.gives_carry)],
                dynamic_shapes=(tuple({0: batch} for _ in tensors),),
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:400]
        raise ValueError(f"the segment up to exit {spec.exit + 1} cannot be exported: {reason}") from error
    model = program.model_proto
    if not all(port.type.tensor_type.shape.dim[0].dim_param for port in model.graph.input):
        raise ValueError(f"the segment up to exit {spec.exit + 1} cannot be exported: it depends on the batch size")
    data: bytes = model.SerializeToString()
    return data


@contextmanager
def operators_kept() -> Iterator[None]:
    """Within, PyTorch's exporter takes the table of its operators from the export before, if there was one.

    It builds it anew for every export, which takes half a second for each segment. Versions that have it elsewhere are
    left as they are.
    """
    registry: Any = getattr(import_module("torch.onnx._internal.exporter._registration"), "ONNXRegistry", None)
    if registry is None or "from_torchlib" not in vars(registry):
        yield
        return
    build = vars(registry)["from_torchlib"]
    registry.from_torchlib = staticmethod(partial(_operators, registry, build))
    try:
        yield
    finally:
        registry.from_torchlib = build


@cache
def _operators(registry: Any, build: Any, *args: Any, **kwargs: Any) -> Any:
    return build.__get__(None, registry)(*args, **kwargs)


def _ports(name: str, tensors: tuple[Tensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(f"{name}_{index}", tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for index, tensor in enumerate(tensors)
    )


def _row(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)
