"""Segments of a bundle as foreign runtimes run them: ONNX Runtime, OpenVINO. Runs without torch."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.external_data import external_tensor
from offramp.bundle.gpu_sessions import PROVIDERS, open_on_gpu
from offramp.bundle.manifest import SegmentSpec
from offramp.cores import cores
from offramp.lookup import with_parameters
from offramp.text import one_line

RUNTIMES = ("onnx", "openvino", *PROVIDERS)
LOGITS = "logits"

Array = NDArray[Any]
RunSession = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Tensors by name in, tensors by name out."""

ArraySegment = Callable[[Any, Any], tuple[tuple[Array, ...], tuple[Array, ...], Array]]
"""A segment (see `offramp.outputs.Segment`) on numpy arrays."""


@dataclass(frozen=True)
class OnnxSegment:
    """A segment that ONNX Runtime computes on the CPU; called like every `ArraySegment`.

    Attributes:
        run: on arrays.
        session: of ONNX Runtime.
        spec: its entry in the manifest.
    """

    run: ArraySegment
    session: Any
    spec: SegmentSpec

    def __call__(self, state: Any, carry: Any) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        """(state, carry) -> (state, carry, logits)."""
        return self.run(state, carry)


def open_segment(
    model: bytes,
    spec: SegmentSpec,
    runtime: str = "onnx",
    threads: int | None = None,
    classes: int | None = None,
    optimised: bool = True,
) -> ArraySegment:
    """A segment that a runtime computes, on the CPU or (`onnx-cuda`, `onnx-tensorrt`) on a GPU.

    It computes in float32; what the file quantises, in integers.

    Args:
        model: the content of its ONNX file.
        runtime: one of `RUNTIMES`.
        threads: how many it may use; by default, as many as there are cores that this process may use.
        classes: how many logits it must give; any number by default.
        optimised: False: `onnx` computes node by node as the file says, without integer kernels, to compare with.
    Returns:
        The segment; it raises ValueError if the model fails, or gives tensors of other shapes than `spec` says.
    Raises:
        ValueError: if the runtime is unknown or cannot read the model, the model reads other files, or has other
            tensors than `spec`.
        ImportError: if the runtime is not installed, with the command that installs it.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}: there are {', '.join(RUNTIMES)}")
    _refuse_external_data(model, spec.file)
    if runtime in PROVIDERS:
        segment: ArraySegment = open_on_gpu(model, spec, runtime, threads, classes)
        return segment
    session: Any = None
    if runtime == "onnx":
        session = _onnx(model, spec.file, threads, optimised)
        run, takes, gives = _run_of(session, spec.file)
    else:
        run, takes, gives = _openvino(model, spec.file, threads)
    expected_inputs = {port.name for port in spec.takes_state + spec.takes_carry}
    declared = {LOGITS, *(port.name for port in spec.gives_state + spec.gives_carry)}
    # OpenVINO drops inputs that nothing is computed from, such as a carry that the next exit does not look at.
    if (takes != expected_inputs and not (runtime == "openvino" and takes < expected_inputs)) or gives != declared:
        raise ValueError(
            f"{spec.file} has the inputs {sorted(takes)} and the outputs {sorted(gives)}, but "
            f"manifest.json says {sorted(expected_inputs)} and {sorted(declared)}"
        )
    segment = _segment(run, spec, classes)
    return segment if session is None else OnnxSegment(segment, session, spec)


def _refuse_external_data(model: bytes, name: str) -> None:
    try:
        external = external_tensor(model)
    except ValueError as error:
        raise ValueError(f"{name} is not an ONNX model: {error}") from None
    if external:
        raise ValueError(f"{name} keeps tensors in other files, which a bundle must not do: export it again")


def _segment(run: RunSession, spec: SegmentSpec, classes: int | None) -> ArraySegment:
    takes = [port.name for port in spec.takes_state + spec.takes_carry]
    gives = {port.name: port.shape for port in spec.gives_state + spec.gives_carry}

    def segment(state: Any, carry: Any) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        tensors = (*(state if isinstance(state, tuple) else (state,)), *carry)
        outputs = run({name: np.ascontiguousarray(tensor) for name, tensor in zip(takes, tensors, strict=True)})
        logits, batch = outputs[LOGITS], len(tensors[0])
        if logits.ndim != 2 or len(logits) != batch or (classes is not None and logits.shape[1] != classes):
            expected_width = "C" if classes is None else classes
            raise ValueError(
                f"{spec.file} returns logits {logits.shape}, not {(batch, expected_width)} as manifest.json says"
            )
        for name, shape in gives.items():
            if outputs[name].shape != (batch, *shape):
                raise ValueError(
                    f"{spec.file} returns {name} {outputs[name].shape}, not {(batch, *shape)} as manifest.json says"
                )
        next_state = tuple(outputs[port.name] for port in spec.gives_state)
        return next_state, tuple(outputs[port.name] for port in spec.gives_carry), logits

    return segment


def _onnx(model: bytes, name: str, threads: int | None, optimised: bool) -> Any:
    """A session of ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("bundles run in ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: they are raised anyway
    options.intra_op_num_threads = threads or _allowed_cores()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Every segment has threads of its own; those of the one before would spin where those of the next one work.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        raise ValueError(f"{name} is not a model that ONNX Runtime can run: {_line(error)}") from None


def _run_of(session: Any, name: str) -> tuple[RunSession, set[str], set[str]]:
    """How to run a session, and the names of its inputs and outputs."""
    gives = [port.name for port in session.get_outputs()]

    def run(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            return dict(zip(gives, session.run(gives, dict(tensors)), strict=True))
        except Exception as error:
            raise ValueError(f"{name} failed in ONNX Runtime: {_line(error)}") from None

    return run, {port.name for port in session.get_inputs()}, set(gives)


def _allowed_cores() -> int:
    """Cores of this process if it may not use all, else 0: ONNX Runtime itself counts those of the machine only.

    A thread that it starts for another core waits for one of the process's own, and the others wait for it, spinning.
    """
    allowed = cores()
    return 0 if allowed == os.cpu_count() else allowed


@cache
def _core(openvino: ModuleType) -> Any:
    """One for the process, never released.

    Of several that are released, the last leaves an alternate stack for signals whose memory is freed: the next signal
    ends the process by a segmentation fault (OpenVINO 2026.4, CPU plugin).
    """
    return openvino.Core()


def _openvino(model: bytes, name: str, threads: int | None) -> tuple[RunSession, set[str], set[str]]:
    try:
        import openvino
    except ImportError:
        raise with_parameters(
            ImportError("OpenVINO is not installed: pip install 'offramp[openvino]', or take runtime=onnx"), "runtime"
        ) from None
    core = _core(openvino)
    # Left alone, it takes bf16 on processors that have it, and the answers would not be those that were verified.
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", hints)
    except RuntimeError as error:
        raise ValueError(f"{name} is not a model that OpenVINO can run: {_line(error)}") from None
    takes = [port.get_any_name() for port in compiled.inputs]
    alone = Lock()  # a compiled model has one request of its own, which refuses a second thread
    gives = [port.get_any_name() for port in compiled.outputs]

    def run(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        with alone:
            try:
                results = compiled({port: tensors[port] for port in takes})
            except RuntimeError as error:
                raise ValueError(f"{name} failed in OpenVINO: {_line(error)}") from None
            return {output: np.array(results[index]) for index, output in enumerate(gives)}  # its next run writes there

    return run, set(takes), set(gives)


def _line(error: Exception) -> str:
    return one_line(str(error), 300)
