"""Segments of a bundle as foreign runtimes run them: ONNX Runtime, OpenVINO. Runs without torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Part

RUNTIMES = ("onnx", "openvino")
LOGITS = "logits"

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Tensors by name in, tensors by name out."""

ArraySegment = Callable[[Any, Any], tuple[tuple[Array, ...], tuple[Array, ...], Array]]
"""A segment (see `offramp.outputs.Segment`) on numpy arrays."""


def open_segment(model: bytes, part: Part, runtime: str = "onnx") -> ArraySegment:
    """A segment that a runtime computes in float32 on the CPU.

    Args:
        model: the content of its ONNX file.
        runtime: one of `RUNTIMES`.
    Raises:
        ValueError: if the runtime is unknown or cannot read the model, or the model has other tensors than `part`.
        ImportError: if the runtime is not installed, with the command that installs it.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}: there are {', '.join(RUNTIMES)}")
    opened = _onnx if runtime == "onnx" else _openvino
    run, takes, gives = opened(model, part.file)
    wanted = {port.name for port in part.takes_state + part.takes_carry}
    promised = {LOGITS, *(port.name for port in part.gives_state + part.gives_carry)}
    if takes != wanted or gives != promised:
        raise ValueError(
            f"{part.file} takes {sorted(takes)} and gives {sorted(gives)}, but the manifest says {sorted(wanted)} and "
            f"{sorted(promised)}"
        )
    return _segment(run, part)


def _segment(run: Run, part: Part) -> ArraySegment:
    def segment(state: Any, carry: Any) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
        tensors = (*(state if isinstance(state, tuple) else (state,)), *carry)
        ports = part.takes_state + part.takes_carry
        made = run({port.name: np.ascontiguousarray(tensor) for port, tensor in zip(ports, tensors, strict=True)})
        state = tuple(made[port.name] for port in part.gives_state)
        return state, tuple(made[port.name] for port in part.gives_carry), made[LOGITS]

    return segment


def _onnx(model: bytes, name: str) -> tuple[Run, set[str], set[str]]:
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("bundles run in ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: they are raised anyway
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        raise ValueError(f"{name} is no model that ONNX Runtime can run: {_line(error)}") from None
    gives = [port.name for port in session.get_outputs()]

    def run(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            return dict(zip(gives, session.run(gives, dict(tensors)), strict=True))
        except Exception as error:
            raise ValueError(f"{name} failed in ONNX Runtime: {_line(error)}") from None

    return run, {port.name for port in session.get_inputs()}, set(gives)


def _openvino(model: bytes, name: str) -> tuple[Run, set[str], set[str]]:
    try:
        import openvino
    except ImportError:
        raise ImportError(
            "OpenVINO is not installed: pip install 'offramp[openvino]', or take --runtime onnx"
        ) from None
    # Left alone, it takes bf16 on processors that have it, and the answers would not be those that were verified.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", hints)
    except RuntimeError as error:
        raise ValueError(f"{name} is no model that OpenVINO can run: {_line(error)}") from None
    gives = [port.get_any_name() for port in compiled.outputs]

    def run(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        made = compiled(dict(tensors))
        return {output: np.array(made[index]) for index, output in enumerate(gives)}

    return run, {port.get_any_name() for port in compiled.inputs}, set(gives)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
