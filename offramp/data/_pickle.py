"""A reader of CIFAR's pickles that admits what those files contain, and refuses and runs nothing else."""

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from jaxtyping import UInt8


class _Dtype:
    """Stands in for numpy.dtype: keeps the code, accepts bytes only."""

    def __init__(self, code: str | bytes, *flags: int) -> None:
        if len(code) > 8:  # the longest that is needed is |u1
            raise pickle.UnpicklingError("it holds a type that is not of bytes")
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


class _Encode:
    """Stands in for codecs.encode, by which newer writers spell bytes in old protocols.

    A pickle may ask for the same text any number of times; all answers together are no longer than the pickle.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
        self.budget -= len(text)
        if self.budget < 0:
            raise pickle.UnpicklingError("it would take much more memory than its size")
        return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """The one hook that Python offers is a method to override."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.encode = _Encode(len(content))

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of an admitted name; everything else is refused before it is looked up."""
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file contains")
        return _ADMITTED[module, name]


def _check_claims(content: bytes) -> None:
    """Refuse what claims memory by a number alone: places in the memo, and the lengths of byte arrays.

    `genops` itself refuses texts and bytes that are longer than what follows.
    """
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError("it would take much more memory than its size")


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in one of CIFAR's files, keys as text; arrays are numpy's, of bytes.

    Raises:
        ValueError: if it holds anything that those files do not contain (it may be malicious), or is damaged.
    """
    try:
        _check_claims(content)
        value = _Unpickler(content).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{where} is refused: {error}; download the file from its original source") from error
    except Exception as error:  # damaged pickles fail in many ways
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}): download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no dictionary, as CIFAR's files do: download it from its original source")
    return {text_of(key, f"{where}: a key"): _plain(item) for key, item in value.items()}


def text_of(value: object, what: str) -> str:
    """A text that was pickled as text or bytes; `what` names it in errors.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(value, bytes | str):
        raise ValueError(f"{what} is not text: download the file from its original source")
    return value.decode("latin1") if isinstance(value, bytes) else value


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
        raise ValueError(f"{where} should hold {key!r} of N x 3072 bytes, but has {shape}: download it again")
    return data.reshape(-1, 3, 32, 32)
