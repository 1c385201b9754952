"""Segments in int8: what they compute, what a bundle says of them, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bundle import int8
from offramp.bundle import manifest as manifest_file
from offramp.bundle.read import content, open_bundle
from offramp.bundle.recertify import exported_trace, recertified
from offramp.bundle.sessions import open_segment
from offramp.bundle.write import write
from offramp.early_exit.certify import divide
from offramp.images import Fit
from offramp.runs.evaluate_bundle import evaluate_bundle

GOAL = {"goal": {"risk": 0.3, "delta": None}, "plain": {"macs": 10**9}}


@pytest.fixture(scope="module")
def quantised(exported: Any, integer_kernels: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle `made` in int8; nobody may change its files."""
    folder = tmp_path_factory.mktemp("int8") / "b"
    data = dataclasses.replace(exported.data, fit=Fit(8, 10))
    write(folder, exported.net, exported.policy, data, images=40, origin=GOAL, int8_drop=0.2)
    return folder


def test_a_bundle_in_int8(exported: Any, quantised: Path) -> None:
    """Two maps, a chain of exits and integers among the states: most awkward for ranges and names."""
    manifest = open_bundle(quantised).manifest
    assert manifest.precision == "int8" and exported.manifest.precision == "float32"
    about = manifest.quantised
    assert about["exits"] == [0, 2, 3] and about["samples"] == len(exported.data.splits["cal"])
    assert about["range_images"] == len(exported.data.splits["cal"]) // 3
    assert 0 <= about["kernels"]["largest_difference"] <= about["kernels"]["tolerance"] == int8.KERNELS
    assert {name: set(each) for name, each in about["ms"].items()} == {key: {"1", "64"} for key in ("float32", "int8")}
    assert manifest.verified["tolerance"] == 0.01 and manifest.measured["ms_of"]["precision"] == "int8"
    first = content(quantised, manifest, "segment-1.onnx")
    assert b"QuantizeLinear" in first and b"QuantizeLinear" not in content(
        exported.folder, exported.manifest, "segment-1.onnx"
    )
    cal = exported.data.splits["cal"]
    before, labels = exported_trace(open_bundle(exported.folder), cal)
    after, _ = exported_trace(open_bundle(quantised), cal)
    for name, trace in (("float32", before), ("int8", after)):
        assert about["accuracy"][name] == [float((trace[exit].argmax(1) == labels).mean()) for exit in (0, 2, 3)]
    same = [float((before[exit].argmax(1) == after[exit].argmax(1)).mean()) for exit in (0, 2, 3)]
    assert about["same_prediction"] == same
    assert 0 < np.abs(after - before).max() < 0.3 * np.abs(before).max()


def tensors(model: Any) -> dict[str, np.ndarray]:
    """The stored tensors of an ONNX model by name."""
    import onnx

    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_ranges_are_those_of_the_states_that_arrive_per_channel_for_weights(exported: Any, quantised: Path) -> None:
    """The classifier, which ends in the logits, stays in float32."""
    onnx = pytest.importorskip("onnx")
    bundle = open_bundle(quantised)
    cal = exported.data.splits["cal"]
    rows = cal.indices[divide(len(cal))[0]]
    inputs = bundle.manifest.preprocessing.normalise(cal.source.batch(rows))
    states = bundle.segments[0](inputs, ())[0]
    second = onnx.load_model_from_string(content(quantised, bundle.manifest, bundle.manifest.parts[1].file))
    stored, nodes = tensors(second), list(second.graph.node)
    scales = {node.input[0]: stored[node.input[1]] for node in nodes if node.op_type == "QuantizeLinear"}
    assert [float(scales[name]) for name in ("state_0", "state_1")] == pytest.approx(
        [(state.max() - min(state.min(), 0)) / 255 for state in states], rel=1e-5
    )
    restored = [node for node in nodes if node.op_type == "DequantizeLinear"]
    weights = [node for node in restored if node.input[0] in stored and stored[node.input[0]].ndim == 4]
    assert weights and all(stored[node.input[1]].shape == stored[node.input[0]].shape[:1] for node in weights)
    (last,) = (node for node in nodes if "logits" in node.output)
    assert not any({*node.output} & {*last.input} for node in restored)


def test_times_are_in_milliseconds_of_a_batch_and_of_an_image(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "medians", lambda seconds: dict.fromkeys(seconds, 0.128))
    bundle = open_bundle(exported.folder)
    times = int8._times({"float32": bundle.segments}, bundle.manifest.preprocessing.shape)
    assert times == {"float32": {"1": 128.0, "64": 128.0}}
    assert int8.segment_ms(bundle, 64) == [2.0] * 3


def test_thresholds_and_certificate_are_those_of_the_quantised_segments(exported: Any, quantised: Path) -> None:
    bundle = open_bundle(quantised)
    logits, labels = exported_trace(bundle, exported.data.splits["cal"])
    costs = bundle.manifest.measured["segment_macs"]
    expected = recertified(exported.policy, GOAL, logits, labels, costs, "int8")
    stored = bundle.manifest.provenance["policy"]
    assert bundle.policy == expected.policy != exported.policy and stored["precision"] == "int8"
    assert stored["certificate"] == json.loads(json.dumps(expected.about["certificate"]))


def test_every_goal_is_fitted_anew_in_int8_and_refers_to_the_network_in_float32(exported: Any) -> None:
    logits, labels = exported_trace(open_bundle(exported.folder), exported.data.splits["cal"])
    plain = float((logits[-1].argmax(1) == labels).mean())
    goal = {"max_drop": 0.05, "accuracy": plain - 0.05}
    shipped = recertified(exported.policy, {"goal": goal}, logits, labels, [1, 1, 1], "int8")
    assert shipped.about["refitted"] and shipped.about["achieved"]["accuracy"] >= plain - 0.05
    with pytest.raises(ValueError, match=r"segments, in int8, no longer reach the goal .* calibrate again"):
        recertified(exported.policy, {"goal": {"max_drop": 0.0, "accuracy": 0.999}}, logits, labels, [1, 1, 1], "int8")


def test_an_exit_that_loses_too_much_is_refused_with_the_segment_that_costs_most(
    exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cal = exported.data.splits["cal"]
    truth = exported_trace(open_bundle(exported.folder), cal)[0][-1].argmax(1)  # so that the final exit is always right

    def trace(bundle: Any, split: Any) -> Any:
        return exported_trace(bundle, split)[0], truth

    def broken(models: Any, parts: Any, inputs: Any) -> list[bytes]:
        """The second segment gets the weights of nothing that is useful."""
        import onnx

        model = onnx.load_model_from_string(models[1])
        for weights in model.graph.initializer:
            if weights.data_type == onnx.TensorProto.FLOAT:
                values = np.random.default_rng(0).normal(size=tuple(weights.dims)).astype(np.float32)
                weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return [models[0], model.SerializeToString(), models[2]]

    monkeypatch.setattr(int8, "quantised", broken)
    monkeypatch.setattr(int8, "exported_trace", trace)
    reason = (
        r"exit [34] loses .* ± .* points of accuracy on \d+ images of cal in int8, more than int8_drop=0\.50 points; "
        r"most of it in segment-2\.onnx"
    )
    with pytest.raises(ValueError, match=reason):
        int8.convert(exported.folder, exported.manifest, cal, 0.005, {})


def test_noise_is_no_loss(exported: Any) -> None:
    """One of 100 images is lost: a point, but not certainly more than half of one."""
    before, after = np.ones(100, bool), np.ones(100, bool)
    after[0] = False
    lost, noise = int8._loss(before, after)
    assert lost == pytest.approx(0.01) and lost - int8.CERTAIN * noise < 0.005
    bundle, right = open_bundle(exported.folder), {"float32": before[None], "int8": after[None]}
    int8._refuse_loss(bundle, bundle.segments, exported.data.splits["cal"], right, 0.005)
    after[:10] = False
    lost, noise = int8._loss(before, after)
    assert lost - int8.CERTAIN * noise > 0.005


def test_the_exit_that_loses_most_beyond_its_noise_is_named(exported: Any) -> None:
    bundle, cal = open_bundle(exported.folder), exported.data.splits["cal"]
    before = np.ones((3, len(cal)), bool)
    after = before.copy()
    after[1, ::3] = after[2, ::9] = False
    with pytest.raises(ValueError, match=r"^exit 3 loses 33\.\d+ ± .* more than int8_drop=1\.00 points"):
        int8._refuse_loss(bundle, bundle.segments, cal, {"float32": before, "int8": after}, 0.01)


def test_integer_kernels_that_compute_something_else_are_refused(exported: Any, quantised: Path) -> None:
    bundle = open_bundle(quantised)
    models = [content(quantised, bundle.manifest, spec.file) for spec in bundle.manifest.parts]
    inputs = np.zeros((2, *bundle.manifest.preprocessing.shape), np.float32)

    def overflowing(state: Any, carry: Any) -> Any:
        state, carry, logits = bundle.segments[0](state, carry)
        return state, carry, 1.5 * logits

    with pytest.raises(ValueError, match=r"segment-1\.onnx: the integer kernels of this processor differ .* VNNI"):
        int8._kernels(models, bundle.manifest.parts, [overflowing, *bundle.segments[1:]], inputs)


def test_openvino_runs_the_same_files(exported: Any, quantised: Path) -> None:
    pytest.importorskip("openvino")
    bundle = open_bundle(quantised)
    spec = bundle.manifest.parts[0]
    inputs = bundle.manifest.preprocessing.normalise(exported.data.splits["cal"].source.batch(np.arange(16)))
    other = open_segment(content(quantised, bundle.manifest, spec.file), spec, "openvino")(inputs, ())[2]
    expected = bundle.segments[0](inputs, ())[2]
    assert np.sqrt(np.square(other - expected).mean() / np.square(expected).mean()) < int8.KERNELS


def test_evaluating_it_runs_what_ships_in_every_runtime(exported: Any, quantised: Path) -> None:
    split = exported.data.splits["test"]
    logits, labels = exported_trace(open_bundle(quantised), split)
    for runtime in ("onnx", "openvino"):
        pytest.importorskip(runtime.replace("onnx", "onnxruntime"))
        result = evaluate_bundle(quantised, "digits", runtime=runtime, batch_size=100)
        assert (result.precision, result.runtime, result.split, result.samples) == ("int8", runtime, "test", len(split))
        for exit in (0, 2, 3):
            expected = float((logits[exit].argmax(1) == labels).mean())
            assert result.accuracy[exit] == pytest.approx(expected, abs=0.01)  # OpenVINO's kernels round otherwise
        assert result.accuracy[1] is None and sum(result.shares) == pytest.approx(1)


def test_what_cannot_be_quantised_is_named(exported: Any) -> None:
    data = dataclasses.replace(exported.data, splits={"test": exported.data.splits["test"]})
    with pytest.raises(ValueError, match="int8 needs the split cal"):
        write(exported.folder.parent / "c", exported.net, exported.policy, data, images=4, int8_drop=0.2)


def test_manifests_from_before_int8_are_read(exported: Any) -> None:
    values = json.loads((exported.folder / "manifest.json").read_text())
    assert values.pop("quantised") == {}
    text = json.dumps({**values, "digest": manifest_file._BLANK}, indent=2)
    old = text.replace(manifest_file._BLANK, manifest_file._digest(text))
    manifest = manifest_file.parse(old.encode(), "manifest.json")
    assert manifest.precision == "float32" and manifest.parts == exported.manifest.parts
