"""Bundles and state files that somebody made to harm: refused in one sentence, before memory or files are touched."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from offramp.bundle import partial_state
from offramp.bundle.external_data import external_tensor
from offramp.bundle.manifest import SegmentSpec, TensorSpec, parse, render
from offramp.bundle.predict import check_batch, warm_up
from offramp.bundle.read import Bundle, open_bundle, read_manifest
from offramp.bundle.sessions import open_segment


def external(name: str = "w") -> Any:
    """A tensor whose values lie in the file `secret`."""
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [4, 3], np.zeros(12, np.float32).tobytes(), raw=True)
    onnx.external_data_helper.set_external_data(tensor, "secret")
    tensor.ClearField("raw_data")
    return tensor


def model(classes: int = 3, tensor: Any = None, nodes: Any = None) -> bytes:
    """inputs (B, 4) -> logits (B, classes)."""
    weights = tensor or helper.make_tensor("w", TensorProto.FLOAT, [4, classes], [0.0] * 4 * classes)
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["state_0", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("state_0", TensorProto.FLOAT, ["B", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "C"])],
        [weights],
    )
    opset = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return data


PART = SegmentSpec("segment-1.onnx", 0, (TensorSpec("state_0", (4,), "float32"),), (), (), ())
INPUTS = np.zeros((2, 4), np.float32)


def constant() -> Any:
    return helper.make_node("Constant", [], ["w"], value=external("c"))


def branch() -> Any:
    graph = helper.make_graph([constant()], "inner", [], [helper.make_tensor_value_info("w", 1, [4, 3])])
    return helper.make_node("If", ["flag"], ["x"], then_branch=graph, else_branch=graph)


def test_tensors_in_other_files_are_found_wherever_they_are(exported: Any) -> None:
    assert external_tensor(model(tensor=external()))
    assert external_tensor(model(nodes=[constant()])) and external_tensor(model(nodes=[branch()]))
    function = helper.make_function("d", "f", [], ["w"], [constant()], [helper.make_opsetid("", 17)])
    whole = onnx.load_from_string(model())
    whole.functions.append(function)
    assert external_tensor(whole.SerializeToString())
    assert not external_tensor(model())
    assert not any(external_tensor((exported.folder / part.file).read_bytes()) for part in exported.manifest.parts)


def test_they_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(np.ones(12, np.float32).tobytes())
    with pytest.raises(ValueError, match=r"^segment-1\.onnx keeps tensors in other files, which a bundle must not"):
        open_segment(model(tensor=external()), PART)


@pytest.mark.parametrize("data", [b"\x0b", b"\x80" * 11, b"\x0a\x05ab"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^segment-1\.onnx is not an ONNX model: it is (not a protobuf|truncated)"):
        open_segment(data, PART)


@pytest.mark.parametrize("classes", [2, 4])
def test_other_classes_than_logits(classes: int) -> None:
    assert open_segment(model(3), PART, classes=3)(INPUTS, ())[2].shape == (2, 3)
    with pytest.raises(ValueError, match=rf"returns logits \(2, 3\), not \(2, {classes}\) as manifest.json says"):
        open_segment(model(3), PART, classes=classes)(INPUTS, ())


def test_other_states_than_the_manifest_says(exported: Any) -> None:
    part = exported.manifest.parts[0]
    wrong = replace(part, gives_state=(replace(part.gives_state[0], shape=(9, 9, 9)), part.gives_state[1]))
    run = open_segment((exported.folder / part.file).read_bytes(), wrong)
    with pytest.raises(
        ValueError, match=r"segment-1\.onnx returns next_state_0 .*, not \(2, 9, 9, 9\) as manifest.json"
    ):
        run(np.zeros((2, 1, 8, 8), np.float32), ())


def test_a_bundle_with_fewer_classes_than_logits(copied: Path, exported: Any) -> None:
    text = render(replace(exported.manifest, classes=exported.manifest.classes[:4]))
    (copied / "manifest.json").write_text(text)
    opened = open_bundle(copied)
    with pytest.raises(ValueError, match=r"segment-1\.onnx returns logits \(1, 10\), not \(1, 4\)"):
        warm_up(opened, 1)


def test_the_manifest_may_not_be_a_link(copied: Path, tmp_path: Path) -> None:
    (copied / "manifest.json").rename(tmp_path / "elsewhere.json")
    os.symlink(tmp_path / "elsewhere.json", copied / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json is a link: a bundle is a folder of plain files"):
        read_manifest(copied)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(exits=10**9), "it has 1000000000 exits and 10 classes"),
        (lambda m: m.update(classes=[]), "exits and 0 classes"),
        (lambda m: m["parts"][0]["gives_state"][0].update(shape=[10**6, 10**6]), "or has more than 67,108,864 values"),
        (
            lambda m: m["parts"][0]["gives_state"][0].update(shape=[4, -8]),
            r"shape \(4, -8\) is empty, or has more than",
        ),
        (lambda m: m.update(classes="a" * 10**5), "'a+… should be a list$"),
    ],
)
def test_a_manifest_that_asks_for_too_much(exported: Any, change: Callable[[Any], Any], says: str) -> None:
    values = json.loads(render(exported.manifest))
    change(values)
    blank = json.dumps({**values, "digest": "0" * 64}, indent=2) + "\n"
    from hashlib import sha256

    text = blank.replace("0" * 64, sha256(blank.encode()).hexdigest())
    with pytest.raises(ValueError, match=says) as caught:
        parse(text.encode(), "manifest.json")
    assert len(str(caught.value)) < 600


def test_a_batch_that_does_not_fit_into_memory(exported: Any) -> None:
    opened = open_bundle(exported.folder)
    check_batch(opened, 64)
    part = replace(exported.manifest.parts[0], takes_state=(TensorSpec("state_0", (1 << 24,), "float32"),))
    large = Bundle(
        opened.folder, replace(exported.manifest, parts=(part, *exported.manifest.parts[1:])), opened.policy, ()
    )
    with pytest.raises(ValueError, match=r"batch_size 65 needs 4\.1 GiB .* take at most 64"):
        check_batch(large, 65)


def claiming(path: Path, shape: str) -> None:
    """A state file with an array whose header tells of this shape, and eight bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
        text += " " * (-(len(text) + 11) % 64) + "\n"
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
        archive.writestr("state_0.npy", head + bytes(8))


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(3,)", "(-2,)", "(1, 1)"])
def test_a_state_file_takes_no_more_memory_than_it_has_bytes(exported: Any, tmp_path: Path, shape: str) -> None:
    claiming(tmp_path / "s.npz", shape)
    with pytest.raises(
        ValueError, match=r"s\.npz is not a state file, or is damaged: 'state_0\.npy' does not hold the plain"
    ):
        partial_state.load(tmp_path / "s.npz", open_bundle(exported.folder, begin=1))
