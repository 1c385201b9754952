"""Runtimes take what the manifest says they take, and what is wrong with a model is one sentence."""

import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest

from offramp.bundle.read import open_bundle
from offramp.bundle.sessions import open_segment

OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")


def test_a_file_that_is_no_model(exported: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^segment-1.onnx is not an ONNX model: it is not a protobuf message"
    ) as caught:
        open_segment(b"hello", exported.manifest.parts[0])
    assert "\n" not in str(caught.value)


def test_a_model_with_other_tensors_than_the_manifest_says(exported: Any) -> None:
    part = exported.manifest.parts[1]
    model = (exported.folder / part.file).read_bytes()
    other = replace(part, takes_carry=part.takes_carry[:1])
    with pytest.raises(
        ValueError, match=r"segment-2.onnx has the inputs .*'carry_1'.* but manifest.json says \['carry_0', 'st"
    ):
        open_segment(model, other)
    other = replace(part, gives_state=())
    with pytest.raises(ValueError, match=r"segment-2.onnx has the inputs .* and the outputs .* but manifest.json says"):
        open_segment(model, other)


def test_inputs_that_do_not_fit(exported: Any) -> None:
    part = exported.manifest.parts[0]
    run = open_segment((exported.folder / part.file).read_bytes(), part)
    with pytest.raises(ValueError, match=r"segment-1.onnx failed in ONNX Runtime: .*invalid dimensions"):
        run(np.zeros((2, 3, 8, 8), np.float32), ())


def test_an_unknown_runtime(exported: Any) -> None:
    with pytest.raises(ValueError, match="unknown runtime 'tpu': there are onnx, openvino"):
        open_segment(b"", exported.manifest.parts[0], "tpu")


def test_openvino_that_is_not_there_is_named_with_its_command(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'offramp\[openvino\]', or take runtime=onnx"):
        open_bundle(exported.folder, "openvino")


@OPENVINO
def test_openvino_answers_what_onnx_runtime_does(exported: Any) -> None:
    state: Any = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    carry: Any = ()
    for part in exported.manifest.parts:
        model = (exported.folder / part.file).read_bytes()
        run = open_segment(model, part, "openvino")
        result = run(state, carry)
        run(np.zeros_like(state) if part.exit == 0 else tuple(map(np.zeros_like, state)), carry)  # leaves it as it is
        state, carry, logits = open_segment(model, part)(state, carry)
        np.testing.assert_allclose(result[2], logits, atol=1e-4)


@pytest.mark.parametrize("runtime", ["onnx", pytest.param("openvino", marks=OPENVINO)])
def test_several_threads_share_a_bundle(exported: Any, runtime: str) -> None:
    bundle = open_bundle(exported.folder, runtime)
    inputs = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
    alone = bundle.answer(inputs).logits
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: bundle.answer(inputs).logits, range(200)):
            assert np.abs(together - alone).max() < 1e-5


INTERRUPTED = """
import gc, os, signal, sys
from offramp.bundle.read import open_bundle
signal.signal(signal.SIGINT, lambda *_: print("handled"))
first, second = (open_bundle(sys.argv[1], "openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGINT)
"""


@OPENVINO
def test_signals_are_handled_after_openvino_is_closed(exported: Any) -> None:
    ran = forked.run_code(INTERRUPTED, exported.folder)
    assert (ran.returncode, ran.stdout) == (0, "handled\n"), ran


@OPENVINO
def test_what_openvino_cannot_do_is_one_sentence(exported: Any) -> None:
    part = exported.manifest.parts[0]
    run = open_segment((exported.folder / part.file).read_bytes(), part, "openvino")
    for what, says in (
        (lambda: open_segment(b"hello", part, "openvino"), "segment-1.onnx is not an ONNX model: "),
        (lambda: run(np.zeros((2, 3, 8, 8), np.float32), ()), "segment-1.onnx failed in OpenVINO: "),
    ):
        with pytest.raises(ValueError) as caught:
            what()
        assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that confines processes to cores")
def test_a_process_that_is_confined_to_one_core_computes_in_one_thread(exported: Any) -> None:
    """ONNX Runtime would start one thread per core of the machine, also for cores that the process may not use."""
    tasks, cores = Path("/proc/self/task"), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        before = len(list(tasks.iterdir()))
        bundle = open_bundle(exported.folder)
        assert len(list(tasks.iterdir())) == before and len(bundle.segments) > 1
    finally:
        os.sched_setaffinity(0, cores)
