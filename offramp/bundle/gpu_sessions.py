"""Segments of a bundle in ONNX Runtime on a GPU: the state stays there between segments, logits come to the host."""

import importlib.util
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import SegmentSpec
from offramp.lookup import with_parameters
from offramp.text import one_line

LOGITS = "logits"
PROVIDERS = {"onnx-cuda": "CUDAExecutionProvider", "onnx-tensorrt": "TensorrtExecutionProvider"}
"""The execution provider of ONNX Runtime that each runtime computes with."""
TYPES: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip
"""Types of tensors by their names in ONNX Runtime."""


OF_SHAPES = {
    *("Add", "Cast", "Concat", "Div", "Gather", "Mul", "Range", "ReduceProd", "Shape", "Size", "Slice"),
    *("Squeeze", "Sub", "Unsqueeze"),
}
"""Operations that ONNX Runtime puts on the CPU if they compute shapes; for others it has kernels on GPUs of each."""
RECORD = "session.record_ep_graph_assignment_info"
"""The setting of ONNX Runtime that lets a session say where each operation runs."""


class DeviceArray:
    """A tensor on a device that the early-exit loop selects rows of, as of an array."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return tuple(self.tensor.shape)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: NDArray[np.int64]) -> "DeviceArray":
        import torch

        from offramp.device_copies import to_device

        return DeviceArray(self.tensor.index_select(0, to_device(torch.from_numpy(rows), self.tensor.device)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.tensor.cpu().numpy(), dtype)


def concatenate(arrays: Sequence[Any]) -> Any:
    """Arrays of several batches as one, on the device if they are `DeviceArray`."""
    if not isinstance(arrays[0], DeviceArray):
        return np.concatenate(arrays)
    import torch

    return DeviceArray(torch.cat([array.tensor for array in arrays]))


def absent(runtime: str) -> str:
    """Why a runtime of `PROVIDERS` cannot be used here, with what to install; nothing if it can, or is another one."""
    if runtime not in PROVIDERS:
        return ""
    try:
        import onnxruntime
    except ImportError:
        return "not installed: pip install onnxruntime-gpu"
    if PROVIDERS[runtime] not in onnxruntime.get_available_providers():
        name = PROVIDERS[runtime]
        return f"not in this ONNX Runtime, which has no {name}: pip install onnxruntime-gpu in place of onnxruntime"
    if runtime == "onnx-tensorrt" and not has_tensorrt():
        return "not installed: pip install tensorrt, in the version that this ONNX Runtime was built for"
    return ""


def has_tensorrt(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether TensorRT is here, as a package or a library of the system: ONNX Runtime offers it without it, too."""
    folders = filter(None, environment.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    return (
        importlib.util.find_spec("tensorrt") is not None
        or find_library("nvinfer") is not None
        or any(any(Path(folder).glob("libnvinfer.so*")) for folder in folders)
    )


def load_libraries(runtime: str, onnxruntime: Any) -> None:
    """Load the libraries of CUDA and TensorRT that packages brought: ONNX Runtime itself looks in the system's folders.

    What is missing shows when a session starts, see `refuse_fallback`.

    Args:
        onnxruntime: the module.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    if runtime == "onnx-tensorrt":
        with suppress(ImportError):
            importlib.import_module("tensorrt")


def providers(runtime: str, device: int) -> list[tuple[str, dict[str, int]]]:
    """The execution providers of a runtime with their options; TensorRT leaves to CUDA what it cannot compute.

    Args:
        device: number of the GPU.
    """
    cuda = (PROVIDERS["onnx-cuda"], {"device_id": device, "use_tf32": 0})  # by default, products are rounded to TF32
    return [cuda] if runtime == "onnx-cuda" else [(PROVIDERS[runtime], {"device_id": device}), cuda]


def refuse_fallback(runtime: str, used: Sequence[str]) -> None:
    """Refuse a session that computes with another provider than was asked for, as ONNX Runtime does silently.

    Args:
        used: the session's providers, the first one first.
    Raises:
        ValueError: naming what it fell back to.
    """
    if not used or used[0] != PROVIDERS[runtime]:
        raise ValueError(
            f"{runtime}: ONNX Runtime could not start {PROVIDERS[runtime]} and fell back to "
            f"{used[0] if used else 'nothing'}; the versions of CUDA, cuDNN and TensorRT that it was built for must be "
            "installed (`python -c 'import onnxruntime; onnxruntime.print_debug_info()'`)"
        )


def refuse_host_operations(runtime: str, file: str, session: Any) -> None:
    """Refuse a session with operations on the CPU; those of shapes, a few numbers for a batch, are no fall-back.

    Args:
        file: name of the model.
        session: opened with the setting `RECORD`.
    Raises:
        ValueError: naming the operations.
    """
    parts = session.get_provider_graph_assignment_info()
    here = {node.op_type for part in parts if part.ep_name == "CPUExecutionProvider" for node in part.get_nodes()}
    if others := sorted(here - OF_SHAPES):
        raise ValueError(f"{file} cannot run on the GPU alone: {runtime} would compute {', '.join(others)} on the CPU")


def open_on_gpu(model: bytes, spec: SegmentSpec, runtime: str, threads: int | None, classes: int | None) -> Any:
    """A segment that ONNX Runtime computes on the GPU; arguments as of `offramp.bundle.sessions.open_segment`.

    Raises:
        ValueError: if the GPU cannot be used, or a part of the model would run on the CPU.
        ImportError: if the runtime is not installed, or this one has no support for GPUs.
    """
    if reason := absent(runtime):
        raise with_parameters(ImportError(f"runtime={runtime} is {reason}"), "runtime")
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        raise with_parameters(ValueError(f"runtime={runtime}: PyTorch sees no CUDA GPU here"), "runtime")
    load_libraries(runtime, onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    says_where = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")  # from 1.24 on
    options.add_session_config_entry(RECORD if says_where else "session.disable_cpu_ep_fallback", "1")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers(runtime, device.index))
    except Exception as error:  # its exceptions have no common class of their own
        raise ValueError(f"{spec.file} cannot run on the GPU alone: {one_line(str(error), 300)}") from None
    refuse_fallback(runtime, session.get_providers())
    if says_where:
        refuse_host_operations(runtime, spec.file, session)
    return bind_session(session, spec, device, classes)


def bind_session(session: Any, spec: SegmentSpec, device: Any, classes: int | None = None) -> Any:
    """A session as a segment whose inputs and outputs are tensors of a device, without a copy to the host.

    Args:
        session: of ONNX Runtime, on that device.
        device: a torch.device.
        classes: how many logits it must give; any number by default.
    Returns:
        (state, carry) -> (state, carry, logits): state and carry as `DeviceArray`, logits as a numpy array.
    """
    import torch

    types = {port.name: port.type for port in (*session.get_inputs(), *session.get_outputs())}
    takes = [port.name for port in spec.takes_state + spec.takes_carry]
    shapes: dict[str, tuple[int, ...]] = {port.name: tuple(port.shape) for port in spec.gives_state + spec.gives_carry}
    width = next(port.shape[1] for port in session.get_outputs() if port.name == LOGITS)
    shapes[LOGITS] = (width,)
    if classes is not None and width != classes:
        raise ValueError(f"{spec.file} gives logits of {width} classes, not {classes} as manifest.json says")

    def kind(name: str) -> Any:
        return TYPES[types[name]]

    def tensor_of(name: str, value: Any) -> Any:
        if isinstance(value, DeviceArray):
            return value.tensor.contiguous()
        return torch.from_numpy(np.ascontiguousarray(value, kind(name))).to(device)

    def segment(state: Any, carry: Any) -> tuple[tuple[Any, ...], tuple[Any, ...], NDArray[Any]]:
        inputs = (*(state if isinstance(state, tuple) else (state,)), *carry)
        tensors = [tensor_of(name, each) for name, each in zip(takes, inputs, strict=True)]
        batch, binding = len(tensors[0]), session.io_binding()
        outputs = {
            name: torch.empty((batch, *shape), dtype=getattr(torch, np.dtype(kind(name)).name), device=device)
            for name, shape in shapes.items()
        }
        place = device.type, device.index or 0
        for name, tensor in zip(takes, tensors, strict=True):
            binding.bind_input(name, *place, kind(name), tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            binding.bind_output(name, *place, kind(name), tuple(tensor.shape), tensor.data_ptr())
        if device.type == "cuda":  # ONNX Runtime has a stream of its own, for which these tensors must be there
            torch.cuda.current_stream(device).synchronize()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise ValueError(f"{spec.file} failed in ONNX Runtime: {one_line(str(error), 300)}") from None
        next_state = tuple(DeviceArray(outputs[port.name]) for port in spec.gives_state)
        return (
            next_state,
            tuple(DeviceArray(outputs[port.name]) for port in spec.gives_carry),
            outputs[LOGITS].cpu().numpy(),
        )

    return segment
