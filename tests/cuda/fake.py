"""A GPU of make-believe: CPU tensors that claim to be on cuda:0, so that a machine without one shows two faults of code
for GPUs: operations whose tensors are on different devices, and waits (the host stops until the device has finished).

Needs `guard.cpp`, compiled and preloaded. It cannot show what belongs to real kernels: their limits, speed, memory,
TF32, cuDNN, asynchronous errors, NCCL. Its numbers are the CPU's, to the bit.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing

GPU = torch.device("cuda:0")
READS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result the host needs before it can go on, if only to know a shape."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

waits: Counter[tuple[str, str]] = Counter()
"""(kind, place) of every wait; the place is the innermost line of offramp, or of a library if there is none."""
mixed: Counter[tuple[str, str]] = Counter()
"""(operation, place) of every operation on tensors of both devices."""
products: Counter[torch.dtype] = Counter()
"""Precision of every matrix product on the GPU."""
copies: Counter[str] = Counter()
"""Copies between host and GPU by place: in a CUDA graph each would read memory of the host that is gone by then."""
_pinned: set[int] = set()
_debug: dict[str, Any] = {"mode": "default"}
"""PyTorch's debug mode for waits."""


@contextmanager
def counted() -> Iterator[tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]]:
    """What happens inside alone: (waits, mixed)."""
    before = waits.copy(), mixed.copy()
    now: tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]] = (Counter(), Counter())
    yield now
    now[0].update(waits - before[0])
    now[1].update(mixed - before[1])


def _place() -> str:
    frame, first = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/offramp/" in path and "site-packages" not in path:
            return f"{path.rpartition('/offramp/')[2]}:{frame.f_lineno}"
        if path != __file__ and "_python_dispatch" not in path:
            first = first or f"{path.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return first


def _wait(kind: str) -> None:
    waits[kind, _place()] += 1
    if _debug["mode"] == "warn" and kind not in ("event", "synchronize"):  # of which PyTorch says nothing
        file, _, line = _place().rpartition(":")
        warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, file, int(line or 0))


class Fake(Tensor):
    """A CPU tensor, `host`, that claims to be on cuda:0."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "Fake":
        built = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=GPU,
        )
        built.host = host
        return built  # type: ignore[no-any-return]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> "Fake":
        return Fake(inner["host"])

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class OnGpu(TorchDispatchMode):
    """While it is on, tensors created for a CUDA device are fakes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [*_tensors(args), *_tensors(kwargs)]
    fakes = [tensor for tensor in tensors if isinstance(tensor, Fake)]
    hosts = [tensor for tensor in tensors if not isinstance(tensor, Fake)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if not fakes and target != "cuda":
        with _disable_current_modes():
            return func(*args, **kwargs)
    name = func._schema.name.partition("::")[2]
    on_gpu = target in (None, "cuda")
    if name in ("mm", "bmm", "addmm"):
        products[fakes[0].dtype] += 1
    if name == "_to_copy":
        _copied(kwargs, fakes, hosts, target)
    elif name == "copy_":
        on_gpu = isinstance(args[0], Fake)
        if hosts:
            _copied({"non_blocking": kwargs.get("non_blocking") or args[2:] == (True,)}, fakes, hosts, None)
    elif name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _wait(name)
    elif name in INDEXING:
        _indexed(name, args, func)
    elif name == "native_batch_norm_backward" and args[5] is None:  # as the kernels for maps in channels_last
        raise RuntimeError("save_mean should always be defined")
    elif any(tensor.dim() for tensor in hosts) or (hosts and name in ("stack", "cat")):
        mixed[str(func), _place()] += 1
    return _computed(func, name, args, kwargs, on_gpu)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments of an operation; torch's pytrees need a third of the time of all checks for that."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Arguments or results of an operation, with the function applied to their tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        mapped = [_mapped(function, each) for each in value]
        return tuple(mapped) if isinstance(value, tuple) else mapped
    return value


def _copied(kwargs: dict[str, Any], fakes: list[Fake], hosts: list[Tensor], target: str | None) -> None:
    """A copy between devices waits, except between a GPU and pinned memory if it is asked not to.

    A copy to a new tensor of the host that is asked not to wait gets pinned memory by itself.
    """
    if not hosts and target in (None, "cuda"):
        return
    copies[_place()] += 1
    pinned = not hosts or any(host.untyped_storage().data_ptr() in _pinned for host in hosts)
    if not (kwargs.get("non_blocking") and pinned):
        _wait("copy to the host" if fakes and (hosts or target == "cpu") else "copy to the device")


def _indexed(name: str, args: Any, func: Any) -> None:
    indices = [index for index in args[1] if isinstance(index, Tensor)]
    by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    fills = name != "index" and args[2].numel() == 1 and len(indices) == 1  # becomes masked_fill
    if by_mask and not fills:
        _wait(f"{name} by a mask")
    if any(not isinstance(index, Fake) for index in indices):
        _wait(f"{name} by indices on the host")
    values = [args[0], *(args[2:3] if name != "index" else ())]
    if any(not isinstance(value, Fake) and value.dim() for value in values):
        mixed[str(func), _place()] += 1


def _computed(func: Any, name: str, args: Any, kwargs: dict[str, Any], on_gpu: bool) -> Any:
    """The result of the operation on the real tensors."""
    args_, kwargs_ = (
        _mapped(lambda tensor: tensor.host if isinstance(tensor, Fake) else tensor, part) for part in (args, kwargs)
    )
    if kwargs_.get("device") is not None and on_gpu:
        kwargs_["device"] = torch.device("cpu")
    kwargs_ |= {key: False for key in ("pin_memory", "non_blocking") if key in kwargs_}
    function = func
    if name == "_efficientzerotensor":
        function, kwargs_ = torch.ops.aten.zeros.default, {"dtype": kwargs_.get("dtype")}
    with _disable_current_modes():
        result = function(*args_, **kwargs_)
    if name == "copy_":
        return args[0]
    if not on_gpu:
        return result
    wrapped = _mapped(Fake, result)
    if func._schema.is_mutable:
        return args[0] if func._schema.returns else None
    if not func.is_view:
        return wrapped
    try:
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    except RuntimeError:  # the storage of a parameter that `Module.to` has swapped is the host's
        return wrapped


def install(memory: int = 1 << 37) -> OnGpu:
    """Let PyTorch and Lightning believe in the GPU; the mode to enter for all that follows.

    Args:
        memory: bytes of the GPU, all free.
    """
    cuda: Any = torch.cuda
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.is_bf16_supported = lambda including_emulation=True: True
    cuda.get_device_name = lambda *device: "make-believe"
    cuda.get_device_capability = lambda *device: (9, 0)
    cuda.get_device_properties = lambda *device: SimpleNamespace(
        name="make-believe", major=9, minor=0, total_memory=memory, multi_processor_count=1
    )
    cuda.mem_get_info = lambda *device: (memory, memory)
    cuda.max_memory_allocated = lambda *device: 1 << 20
    cuda.synchronize = lambda *device: _wait("synchronize")
    cuda.Event, cuda.Stream, cuda.CUDAGraph = _Event, _Stream, object
    cuda.current_stream = _Stream
    cuda.stream = lambda stream: nullcontext()
    cuda.graph = _no_graph
    cuda.get_sync_debug_mode = lambda: _debug["mode"]
    cuda.set_sync_debug_mode = lambda mode: _debug.update(mode=mode)
    cuda.get_rng_state = lambda *device: torch.zeros(16, dtype=torch.uint8)
    for name in (
        "_lazy_init",
        "empty_cache",
        "manual_seed",
        "manual_seed_all",
        "reset_peak_memory_stats",
        "set_device",
        "set_rng_state",
    ):
        setattr(cuda, name, lambda *args: None)
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else torch.enable_grad()  # type: ignore[assignment,misc]
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.tensor = _creating(torch.tensor, "tensor")
    torch.as_tensor = _creating(torch.as_tensor, "as_tensor")
    Tensor.pin_memory = _pin  # type: ignore[method-assign,assignment]
    Fake.new_tensor = lambda self, data, **options: _from_host(data, {"dtype": self.dtype, **options})  # type: ignore
    Fake.tolist = _tolist  # type: ignore[method-assign]
    Fake.__reduce_ex__ = lambda self, protocol: self.detach().host.clone().__reduce_ex__(protocol)  # type: ignore
    import lightning_fabric.accelerators.cuda as accelerator

    accelerator.num_cuda_devices = lambda: 1
    accelerator._check_cuda_matmul_precision = lambda device: None
    return OnGpu()


class _Event:
    """An event of a stream: waiting for it is a wait."""

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None:
        _wait("event")


class _Stream:
    """A stream; there is one only."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...


def _no_graph(graph: Any, **options: Any) -> Any:
    raise RuntimeError("nothing can be captured here")


_tensor = torch.tensor


def _from_host(data: Any, options: dict[str, Any]) -> Fake:
    copies[_place()] += 1
    _wait("copy to the device")
    with _disable_current_modes():
        return Fake(_tensor(data, dtype=options.get("dtype")))


def _creating(create: Callable[..., Tensor], name: str) -> Any:
    def built(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return create(data, dtype=dtype, device=device, **options)
        return data.to(device, dtype) if isinstance(data, Tensor) else _from_host(data, {"dtype": dtype})

    return built


def _pin(self: Tensor) -> Tensor:
    copy = self.clone()
    _pinned.add(copy.untyped_storage().data_ptr())
    return copy


def _tolist(self: Fake) -> Any:
    _wait("tolist")
    with _disable_current_modes():
        return self.detach().host.tolist()
