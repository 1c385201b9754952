"""Segments in 8-bit integers: static quantisation by ONNX Runtime, with QuantizeLinear and DequantizeLinear nodes.

Weights are int8 per output channel, rounded by `weight_rounding`; activations uint8 with the range (minimum to maximum)
that they had on the calibration images. What else was tried is in docs/speed.md.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from offramp.bundle.manifest import SegmentSpec
from offramp.bundle.sessions import LOGITS, ArraySegment, open_segment
from offramp.bundle.weight_rounding import round_weights

BATCH = 16
"""Calibration images at a time."""
ROUNDING = 4
"""Batches whose activations decide how weights are rounded."""


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
    results: list[bytes] = []
    entering: list[tuple[Any, Any]] = [(inputs[start : start + BATCH], ()) for start in range(0, len(inputs), BATCH)]
    for model, spec in zip(models, specs, strict=True):
        results.append(_quantised(model, spec, entering, image=not results))
        segment = open_segment(results[-1], spec)
        entering = [segment(state, carry)[:2] for state, carry in entering]
    return results


def reference_segments(models: Sequence[bytes], specs: Sequence[SegmentSpec]) -> list[ArraySegment]:
    """Quantised segments as their files define them: every operation in float32 between rounded tensors.

    Integer kernels of a processor may differ from it by roundings. Without VNNI instructions, sums may overflow.
    """
    return [open_segment(model, spec, optimised=False) for model, spec in zip(models, specs, strict=True)]


def _quantised(model: bytes, spec: SegmentSpec, entering: Sequence[tuple[Any, Any]], image: bool) -> bytes:
    """A segment quantised; `image`: its state is the image."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared = prepared_model(model)
    exact = onnx.ModelProto()
    exact.CopyFrom(prepared)  # the quantiser changes its model
    batches = [named_tensors(spec, state, carry) for state, carry in entering]
    classifier = [node.name for node in prepared.graph.node if LOGITS in node.output]  # 8 bits would make scores equal
    options: dict[str, Any] = {}
    if image:
        name = spec.takes_state[0].name
        options["TensorQuantOverrides"] = {name: [image_grid(np.concatenate([batch[name] for batch in batches]))]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                prepared,
                str(out),
                BatchReader(batches),
                quant_format=QuantFormat.QDQ,
                calibrate_method=CalibrationMethod.MinMax,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=classifier,
                extra_options=options,
            )
        except Exception as error:  # its exceptions have no common class of their own
            raise ValueError(f"{spec.file} cannot be quantised: {' '.join(str(error).split())[:300]}") from error
        result = onnx.load(str(out))
    round_weights(exact, result, batches[:ROUNDING])
    return bytes(result.SerializeToString())


def image_grid(values: Float[np.ndarray, "..."]) -> dict[str, NDArray[Any]]:
    """Scale and zero point of uint8 for normalised pixels, with the smallest mean square error.

    Pixels have 256 values, of which zero need not be one: with the scale of the whole range, all of them may lie
    halfway between two integers. A scale that is a little larger avoids that.
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if high == low:
        high = low + 1
    different, counts = np.unique(values.reshape(-1)[:: max(1, values.size // 65_536)], return_counts=True)
    grids = [((high - low) / levels, round(-low / ((high - low) / levels))) for levels in np.arange(255, 239, -0.5)]

    def error(grid: tuple[float, int]) -> float:
        scale, zero = grid
        nearest = np.clip(np.rint(different / scale) + zero, 0, 255)
        return float((counts * np.square((nearest - zero) * scale - different)).sum())

    scale, zero = min(grids, key=error)
    return {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}


def named_tensors(spec: SegmentSpec, state: Any, carry: Any) -> dict[str, NDArray[Any]]:
    """The tensors that a segment takes, by name."""
    names = [port.name for port in spec.takes_state + spec.takes_carry]
    return dict(zip(names, (*(state if isinstance(state, tuple) else (state,)), *carry), strict=True))


def prepared_model(model: bytes) -> Any:
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


class BatchReader:
    """Batches by the names of a segment's inputs: the interface `CalibrationDataReader` of ONNX Runtime."""

    def __init__(self, batches: Sequence[dict[str, NDArray[Any]]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch; None after the last one."""
        return next(self.batches, None)
