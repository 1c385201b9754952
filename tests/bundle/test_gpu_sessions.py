"""Sessions whose state stays on the device: here the CPU is that device. A GPU that is not there is one sentence."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from offramp.bundle import gpu_sessions
from offramp.bundle.gpu_sessions import (
    PROVIDERS,
    RECORD,
    DeviceArray,
    absent,
    bind_session,
    providers,
    refuse_fallback,
    refuse_host_operations,
)
from offramp.bundle.read import open_bundle
from offramp.bundle.sessions import open_segment
from offramp.early_exit.runtime import answer

onnxruntime = pytest.importorskip("onnxruntime")
CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def segments(exported: Any) -> list[Any]:
    """The bundle's segments, bound to tensors of the CPU."""
    models = [(exported.folder / part.file).read_bytes() for part in exported.manifest.parts]
    sessions = [onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in models]
    pairs = zip(sessions, exported.manifest.parts, strict=True)
    return [bind_session(session, part, torch.device("cpu"), len(exported.manifest.classes)) for session, part in pairs]


def test_early_exit_is_that_of_plain_sessions(exported: Any) -> None:
    bundle = open_bundle(exported.folder)
    inputs = np.random.default_rng(0).standard_normal((9, 1, 8, 8)).astype(np.float32)
    ours = segments(exported)
    state, _, logits = ours[0](inputs, ())
    assert all(isinstance(part, DeviceArray) for part in state) and isinstance(logits, np.ndarray)
    middle = float(np.median(bundle.policy.step({}, logits, 0)[2]))  # half of the samples leave at the first exit
    policy = replace(bundle.policy, thresholds=(middle, *bundle.policy.thresholds[1:]))
    values, expected = (answer(each, policy, inputs) for each in (ours, bundle.segments))
    np.testing.assert_array_equal(values.exit, expected.exit)
    np.testing.assert_allclose(values.logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert len(set(expected.exit.tolist())) > 1


def test_rows_of_a_device_array_and_its_copy_on_the_host() -> None:
    array = DeviceArray(torch.arange(6.0).view(3, 2))
    assert array.shape == (3, 2) and len(array) == 3
    np.testing.assert_array_equal(np.asarray(array[np.array([2, 0])]), [[4, 5], [0, 1]])


def test_other_classes_than_the_manifest_says(exported: Any) -> None:
    part = exported.manifest.parts[0]
    session = onnxruntime.InferenceSession(
        (exported.folder / part.file).read_bytes(), providers=["CPUExecutionProvider"]
    )
    with pytest.raises(ValueError, match=r"segment-1.onnx gives logits of \d+ classes, not 3 as manifest.json says"):
        bind_session(session, part, torch.device("cpu"), 3)


@pytest.mark.skipif(CUDA, reason="this ONNX Runtime has CUDA")
@pytest.mark.parametrize("runtime", list(PROVIDERS))
def test_a_provider_that_is_not_there(exported: Any, runtime: str) -> None:
    name = PROVIDERS[runtime]
    says = f"runtime={runtime} is not in this ONNX Runtime, which has no {name}: pip install onnxruntime-gpu in"
    with pytest.raises(ImportError, match=re.escape(says)):
        open_segment((exported.folder / "segment-1.onnx").read_bytes(), exported.manifest.parts[0], runtime)


def test_no_onnx_runtime_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert absent("onnx-cuda") == "not installed: pip install onnxruntime-gpu"


def test_tensorrt_is_not_there_though_onnx_runtime_offers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(gpu_sessions, "find_library", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert absent("onnx-cuda") == ""
    assert absent("onnx-tensorrt").startswith("not installed: pip install tensorrt")
    (tmp_path / "libnvinfer.so.10").touch()
    assert gpu_sessions.has_tensorrt({"LD_LIBRARY_PATH": f":{tmp_path}"}) and not gpu_sessions.has_tensorrt({})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert absent("onnx-tensorrt") == ""


def test_libraries_that_packages_brought_are_loaded_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    runtime = SimpleNamespace(preload_dlls=lambda: (loaded.append("cuda"), print("Failed to load libcudnn.so.9")))
    monkeypatch.setattr("importlib.import_module", lambda name: loaded.append(name))
    gpu_sessions.load_libraries("onnx-cuda", runtime)
    gpu_sessions.load_libraries("onnx-tensorrt", SimpleNamespace())  # an older one
    assert loaded == ["cuda", "tensorrt"] and capsys.readouterr().out == ""


def test_a_fall_back_to_the_cpu_is_an_error() -> None:
    refuse_fallback("onnx-cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    says = "onnx-tensorrt: ONNX Runtime could not start TensorrtExecutionProvider and fell back to CUDAExec"
    with pytest.raises(ValueError, match=says):
        refuse_fallback("onnx-tensorrt", ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_products_in_float32_are_not_rounded() -> None:
    """ONNX Runtime itself would compute them in TF32."""
    cuda = ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})
    assert providers("onnx-cuda", 1) == [cuda]
    assert providers("onnx-tensorrt", 1) == [("TensorrtExecutionProvider", {"device_id": 1}), cuda]


def recorded(model: bytes) -> Any:
    """A session on the CPU that says where its operations run."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"), reason="an older ONNX Runtime"
)
def test_operations_on_the_cpu_are_an_error_unless_they_compute_shapes(exported: Any) -> None:
    from onnx import TensorProto, helper

    session = recorded((exported.folder / "segment-1.onnx").read_bytes())
    says = r"segment-1\.onnx cannot run on the GPU alone: onnx-cuda would compute .*Conv.* on the CPU"
    with pytest.raises(ValueError, match=says):
        refuse_host_operations("onnx-cuda", "segment-1.onnx", session)
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Concat", ["s", "s"], ["y"], axis=0)]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2]),
        helper.make_tensor_value_info("y", TensorProto.INT64, [4]),
    ]
    graph = helper.make_graph(nodes, "shapes", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    refuse_host_operations("onnx-cuda", "segment-1.onnx", recorded(model.SerializeToString()))
