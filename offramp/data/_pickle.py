"""A reader of CIFAR's pickles that admits what those files contain, and refuses and runs nothing else."""

import io
import pickle
from typing import Any

import numpy as np
from jaxtyping import UInt8


class _Dtype:
    """Stands in for numpy.dtype: remembers the code, admits bytes only."""

    def __init__(self, code: str | bytes, *flags: int) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like say nothing about single bytes."""


class _Array:
    """Stands in for numpy.ndarray: takes shape and bytes as they come, so that no array code sees foreign state."""

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", "|u1") or not isinstance(data, bytes):
            raise pickle.UnpicklingError("it holds an array that is not of bytes")
        pixels = np.frombuffer(data, dtype=np.uint8)
        self.pixels = pixels.reshape(tuple(int(n) for n in shape), order="F" if fortran else "C")


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """Stands in for numpy's function of that name: an empty array, which its state fills."""
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for codecs.encode, by which newer writers spell bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """The one hook that Python offers is a method to override."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for an admitted name; everything else is refused before it is looked up."""
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file contains")
        return _ADMITTED[module, name]


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in one of CIFAR's files, keys as text; arrays are numpy's, of bytes.

    Raises:
        ValueError: if it holds anything that those files do not contain (it may be malicious), or is damaged.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{where} is refused: {error}; get the file from its original source") from error
    except Exception as error:  # damaged pickles fail in many ways
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}): get it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no dictionary, as CIFAR's files do: get it from its original source")
    return {_text(key): _plain(item) for key, item in value.items()}


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    return value.pixels if isinstance(value, _Array) else value


def pixels_in(content: dict[str, Any], where: str, key: str = "data") -> UInt8[np.ndarray, "N 3 32 32"]:
    """The images of such a file.

    Raises:
        ValueError: if there are none of 3x32x32 bytes.
    """
    data = content.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        shape = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{where} should hold {key!r} of N x 3072 bytes, but has {shape}: get it again")
    return data.reshape(-1, 3, 32, 32)
