"""Segments in 8-bit integers: static quantisation by ONNX Runtime, with QuantizeLinear and DequantizeLinear nodes.

Weights are int8 per output channel, activations uint8 with the range (minimum to maximum) that they had on the
calibration images.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from offramp.bundle.manifest import SegmentSpec
from offramp.bundle.sessions import LOGITS, ArraySegment, open_segment

BATCH = 16
"""Calibration images at a time."""


def quantised(
    models: Sequence[bytes],
    specs: Sequence[SegmentSpec],
    inputs: Float[np.ndarray, "N C H W"],
) -> list[bytes]:
    """The same segments quantised, each on the states that it receives from the quantised ones before it.

    Args:
        models: ONNX files of the segments in float32, in order.
        specs: their entries in the manifest.
        inputs: calibration images, as the first segment takes them; their labels are not needed.
    Raises:
        ValueError: if ONNX Runtime cannot quantise a segment, with the reason.
        ImportError: if onnx or onnxruntime are not installed.
    """
    results = []
    entering: list[tuple[Any, Any]] = [(inputs[start : start + BATCH], ()) for start in range(0, len(inputs), BATCH)]
    for model, spec in zip(models, specs, strict=True):
        results.append(_quantised(model, spec, entering))
        segment = open_segment(results[-1], spec)
        entering = [segment(state, carry)[:2] for state, carry in entering]
    return results


def reference_segments(models: Sequence[bytes], specs: Sequence[SegmentSpec]) -> list[ArraySegment]:
    """Quantised segments as their files define them: every operation in float32 between rounded tensors.

    Integer kernels of a processor may differ from it by roundings. Without VNNI instructions, sums may overflow.
    """
    return [open_segment(model, spec, optimised=False) for model, spec in zip(models, specs, strict=True)]


def _quantised(model: bytes, spec: SegmentSpec, entering: Sequence[tuple[Any, Any]]) -> bytes:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared = _prepared(model)
    classifier = [node.name for node in prepared.graph.node if LOGITS in node.output]  # 8 bits would make scores equal
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                prepared,
                str(out),
                _Reader(spec, entering),
                quant_format=QuantFormat.QDQ,
                calibrate_method=CalibrationMethod.MinMax,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=classifier,
            )
        except Exception as error:  # its exceptions have no common class of their own
            raise ValueError(f"{spec.file} cannot be quantised: {' '.join(str(error).split())[:300]}") from error
        return out.read_bytes()


def _prepared(model: bytes) -> Any:
    """The model as quantisation needs it: constants folded, batch norms in the convolutions, shapes inferred."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "prepared.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        prepared = onnx.shape_inference.infer_shapes(onnx.load(options.optimized_model_filepath))
    add_pre_process_metadata(prepared)  # else the quantiser advises to do this
    return prepared


class _Reader:
    """Batches by the names of a segment's inputs: the interface `CalibrationDataReader` of ONNX Runtime."""

    def __init__(self, spec: SegmentSpec, entering: Sequence[tuple[Any, Any]]) -> None:
        self.names = [port.name for port in spec.takes_state + spec.takes_carry]
        self.batches: Iterator[tuple[Any, Any]] = iter(entering)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch; None after the last one."""
        for state, carry in self.batches:
            tensors = (*(state if isinstance(state, tuple) else (state,)), *carry)
            return dict(zip(self.names, tensors, strict=True))
        return None
