"""Weights that are rounded with regard to a layer's inputs, and the grid of pixels."""

from typing import Any

import numpy as np
import pytest

from offramp.bundle import weight_rounding
from offramp.bundle.quantise import image_grid, quantised
from offramp.bundle.read import content
from offramp.bundle.sessions import open_segment
from offramp.bundle.weight_rounding import compensated, round_weights


def test_errors_make_up_for_each_other_where_inputs_are_correlated() -> None:
    random = np.random.default_rng(0)
    inputs = np.abs(
        random.normal(size=(500, 1, 3)) @ random.normal(size=(3, 24)) + 1
    )  # (samples, 1, 24), as after a ReLU
    weights, scale = random.normal(size=(1, 8, 24)), np.full((1, 8), 0.2)
    moments = np.einsum("ngi,ngj->gij", inputs, inputs) / 500
    rounded = compensated(weights, scale, moments)
    nearest = np.clip(np.rint(weights / scale[:, :, None]), -127, 127)

    def error(integers: Any) -> float:
        return float(np.square(inputs[:, 0] @ (integers * scale[:, :, None] - weights)[0].T).mean())

    assert error(rounded) < 0.3 * error(nearest)
    assert (compensated(weights, scale, np.eye(24)[None]) == nearest).all()  # nothing to make up for
    dead = np.zeros((1, 24, 24))
    assert (compensated(weights, scale, dead) == nearest).all()
    assert np.abs(compensated(100 * weights, scale, moments).astype(int)).max() == 127


def everywhere(images: int, positions: int) -> np.ndarray:
    """Instead of random positions, all of them."""
    return np.broadcast_to(np.arange(positions), (images, positions))


@pytest.mark.parametrize(
    ("kind", "shape", "about"),
    [
        ("Conv", (6, 4, 3, 2), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ("Conv", (4, 1, 3, 3), {"kernel_shape": [3, 3], "group": 4, "pads": [1, 1, 1, 1]}),
        ("Conv", (6, 2, 1, 1), {"kernel_shape": [1, 1], "group": 2}),
        ("MatMul", (5, 7), {}),
        ("Gemm", (7, 5), {"transB": 1}),
    ],
)
def test_inputs_and_rows_are_those_that_a_layer_multiplies(kind: str, shape: Any, about: Any) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    random = np.random.default_rng(1)
    weights = random.normal(size=shape).astype(np.float32)
    values = random.normal(size=(2, 4, 6, 5) if kind == "Conv" else (3, 5)).astype(np.float32)
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], "layer", **about)
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:], [onnx.numpy_helper.from_array(weights, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": values})
    assert weight_rounding._is_layer(node)
    rows = weight_rounding._rows(node, weights)
    inputs = weight_rounding._inputs(node, values, len(rows), everywhere)
    products = (inputs @ rows.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(-1, len(rows) * rows.shape[1])
    if kind == "Conv":
        expected = expected.transpose(0, 2, 3, 1).reshape(products.shape)
    np.testing.assert_allclose(products, expected, rtol=1e-5, atol=1e-5)
    integers = rows.astype(np.int8)
    assert (weight_rounding._as_stored(node, integers, shape) == weights.astype(np.int8)).all()


def test_layers_that_are_not_understood_are_left_alone() -> None:
    onnx = pytest.importorskip("onnx")
    for about in (
        {},
        {"kernel_shape": [3, 3], "dilations": [2, 2]},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
    ):
        assert not weight_rounding._is_layer(onnx.helper.make_node("Conv", ["x", "w"], ["y"], **about))
    assert not weight_rounding._is_layer(onnx.helper.make_node("Add", ["x", "w"], ["y"]))


def test_segments_are_closer_to_float32_and_blocks_are_whole(
    exported: Any, integer_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [content(exported.folder, exported.manifest, spec.file) for spec in exported.manifest.parts[:1]]
    spec, source = exported.manifest.parts[0], exported.data.splits["cal"].source
    inputs = exported.manifest.preprocessing.normalise(source.batch(exported.data.splits["cal"].indices[:64]))
    others = exported.manifest.preprocessing.normalise(source.batch(exported.data.splits["test"].indices))

    def run(model: bytes) -> np.ndarray:
        state, _, logits = open_segment(model, spec)(others, ())
        return np.concatenate([part.reshape(len(others), -1) for part in (*state, logits)], axis=1)

    exact, rounded = run(models[0]), run(quantised(models, [spec], inputs)[0])
    monkeypatch.setattr(weight_rounding, "BLOCK", 4)  # of 9 columns
    blocks = run(quantised(models, [spec], inputs)[0])
    monkeypatch.setattr("offramp.bundle.quantise.round_weights", lambda *about: None)
    nearest = run(quantised(models, [spec], inputs)[0])
    errors = [float(np.square(each - exact).mean()) for each in (rounded, blocks, nearest)]
    assert errors[0] < 0.9 * errors[2] and errors[1] < errors[2], errors


def test_pixels_lie_on_the_grid_and_zero_does_too() -> None:
    pixels = np.arange(256, dtype=np.float32)
    for mean, std in ((0.5, 0.5), (0.485, 0.229), (0.0, 1.0)):
        values = (pixels / 255 - mean) / std
        grid = image_grid(values.astype(np.float32))
        scale, zero = float(grid["scale"]), int(grid["zero_point"])
        rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        assert np.sqrt(np.square(rounded - values).mean()) < 0.3 * scale, (mean, std)
        assert (grid["scale"].dtype, grid["zero_point"].dtype) == (np.float32, np.uint8)
    assert image_grid(np.zeros((2, 3), np.float32))["zero_point"] == 0


def test_round_weights_changes_nothing_but_integers(exported: Any) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(content(exported.folder, exported.manifest, "segment-1.onnx"))
    before = model.SerializeToString()
    round_weights(model, model, [])
    assert model.SerializeToString() == before
