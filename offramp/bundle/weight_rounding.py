"""Weights rounded so that the output of their layer changes least, instead of each to the nearest integer.

The columns of a weight matrix are rounded one after the other; the columns that follow make up for the error, as far as
the layer's inputs are correlated. Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", 2023; here for convolutions, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int8
from numpy.typing import NDArray

POSITIONS = 40
"""Positions of an image at which the inputs of a convolution are looked at."""
BLOCK = 512
"""Columns that make up for each other: beyond, time and memory would grow with their third and second power."""
DAMPING = 0.01
"""Added to the second moments, in units of their mean, so that inputs that are always zero do no harm."""

Array = NDArray[Any]


class Layer(NamedTuple):
    """A layer with quantised weights: G groups (of a convolution; else 1) of R rows and K columns.

    Attributes:
        node: in float32.
        weights: in float32.
        scale: of the integers, (G, R).
        stored: the integers in the quantised model.
    """

    node: Any
    weights: Float[np.ndarray, "G R K"]
    scale: Float[np.ndarray, "G R"]
    stored: Any


def round_weights(exact: Any, quantised: Any, batches: Sequence[Mapping[str, Array]]) -> None:
    """Replace the integers of the quantised model's weights; their scales stay.

    Args:
        exact: the ONNX model in float32 that was quantised.
        quantised: its quantised version, which is changed.
        batches: inputs of the model, by name.
    """
    from onnx import numpy_helper

    layers = list(_layers(exact, quantised))
    for layer, moments in zip(layers, _moments(exact, layers, batches), strict=True):
        integers = np.concatenate(
            [
                compensated(layer.weights[:, :, begin : begin + BLOCK], layer.scale, block)
                for begin, block in zip(range(0, layer.weights.shape[2], BLOCK), moments, strict=True)
            ],
            axis=2,
        )
        shaped = _as_stored(layer.node, integers, tuple(layer.stored.dims))
        layer.stored.CopyFrom(numpy_helper.from_array(shaped, layer.stored.name))


def compensated(
    weights: Float[np.ndarray, "G R K"], scale: Float[np.ndarray, "G R"], moments: Float[np.ndarray, "G K K"]
) -> Int8[np.ndarray, "G R K"]:
    """Integers whose products with inputs of these second moments are close to those of the weights.

    Args:
        scale: of every row.
        moments: mean of x xᵀ over the inputs x of each group.
    """
    columns = weights.shape[2]
    damping = DAMPING * np.trace(moments, axis1=1, axis2=2) / columns + 1e-12
    inverse = np.linalg.inv(moments + damping[:, None, None] * np.eye(columns))
    factor = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    rest, integers = weights.astype(np.float64), np.empty(weights.shape, np.int8)
    for column in range(columns):
        nearest = np.clip(np.rint(rest[:, :, column] / scale), -127, 127)
        integers[:, :, column] = nearest
        error = (rest[:, :, column] - nearest * scale) / factor[:, column, column, None]
        rest[:, :, column + 1 :] -= error[:, :, None] * factor[:, None, column, column + 1 :]
    return integers


def _layers(exact: Any, quantised: Any) -> Iterator[Layer]:
    """Convolutions and matrix products whose weights are int8 constants of the quantised model."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in exact.graph.initializer}
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    dequantised = {node.output[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    nodes = {node.name: node for node in quantised.graph.node}
    for node in exact.graph.node:
        source = dequantised.get(nodes[node.name].input[1]) if _is_layer(node) and node.name in nodes else None
        if source is None or node.input[1] not in constants or source.input[0] not in stored:
            continue
        integers, scale = stored[source.input[0]], numpy_helper.to_array(stored[source.input[1]]).astype(np.float64)
        if numpy_helper.to_array(integers).dtype == np.int8 and len(integers.dims) == (
            4 if node.op_type == "Conv" else 2
        ):
            weights = _rows(node, numpy_helper.to_array(constants[node.input[1]]))
            groups, rows, _ = weights.shape
            yield Layer(
                node, weights, np.broadcast_to(scale.reshape(-1), groups * rows).reshape(groups, rows), integers
            )


def _is_layer(node: Any) -> bool:
    """Whether a node multiplies weights with its inputs as `_inputs` assumes."""
    about = _attributes(node)
    if node.op_type != "Conv":
        return node.op_type in ("MatMul", "Gemm") and not about.get("transA")
    if "kernel_shape" not in about or about.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    return set(about.get("dilations", [1])) == {1}


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _rows(node: Any, weights: Array) -> Float[np.ndarray, "G R K"]:
    """The weights as matrices that are multiplied with columns of inputs."""
    if node.op_type == "Conv":
        groups = _attributes(node).get("group", 1)
        return weights.reshape(groups, len(weights) // groups, -1)
    return (weights if _attributes(node).get("transB") else weights.T)[None]


def _as_stored(node: Any, integers: Int8[np.ndarray, "G R K"], shape: tuple[int, ...]) -> Array:
    """The inverse of `_rows`."""
    if node.op_type == "Conv":
        return integers.reshape(shape)
    return np.ascontiguousarray(integers[0] if _attributes(node).get("transB") else integers[0].T)


def _moments(
    exact: Any, layers: Sequence[Layer], batches: Sequence[Mapping[str, Array]]
) -> list[list[Float[np.ndarray, "G _ _"]]]:
    """Mean second moments of every layer's inputs, of each block of columns."""
    import onnx
    import onnxruntime

    model = onnx.ModelProto()
    model.CopyFrom(exact)
    there = {port.name for port in (*model.graph.input, *model.graph.output)}
    for name in dict.fromkeys(layer.node.input[0] for layer in layers):
        if name not in there:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names, generator = [port.name for port in session.get_outputs()], np.random.default_rng(0)

    def choose(images: int, positions: int) -> Array:
        return generator.integers(0, positions, (images, min(POSITIONS, positions)))

    sums: list[list[Array]] = [[] for _ in layers]
    for batch in batches:
        values = {**batch, **dict(zip(names, session.run(names, dict(batch)), strict=True))}
        for layer, known in zip(layers, sums, strict=True):
            inputs = _inputs(layer.node, values[layer.node.input[0]], len(layer.weights), choose)
            for place, begin in enumerate(range(0, inputs.shape[2], BLOCK)):
                block = inputs[:, :, begin : begin + BLOCK]
                moment = block.transpose(0, 2, 1) @ block / (block.shape[1] * len(batches))
                if place < len(known):
                    known[place] += moment
                else:
                    known.append(moment)
    return [[block.astype(np.float64) for block in known] for known in sums]


def _inputs(node: Any, values: Array, groups: int, choose: Callable[[int, int], Array]) -> Float[np.ndarray, "G _ K"]:
    """Inputs that a layer multiplies its rows with.

    Args:
        choose: (images, positions) -> the positions (images, _) at which those of a convolution are taken.
    """
    if node.op_type != "Conv":
        return values.reshape(1, -1, values.shape[-1])
    about = _attributes(node)
    top, left, bottom, right = about.get("pads", (0, 0, 0, 0))
    kernel = tuple(int(size) for size in about["kernel_shape"])
    down, across = about.get("strides", (1, 1))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
    windows = windows[:, :, ::down, ::across]
    images, channels, height, width = windows.shape[:4]
    taken = choose(images, height * width)
    chosen = windows[np.arange(images)[:, None], :, taken // width, taken % width]
    count = chosen.shape[0] * chosen.shape[1]
    return chosen.reshape(count, groups, channels // groups * chosen[0, 0, 0].size).transpose(1, 0, 2)
