"""JSON of tensors: bounded before it is read, read and written in pieces. Runs without torch.

`orjson`, and numpy with lists, keep the interpreter's lock until they are done: for large tensors that is long, and no
other thread runs. Here others get their turns, so that a large request can be read in a thread while the event loop
answers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from offramp.serve.errors import too_large

LARGE = 1 << 17
"""Bytes from which a body is large: reading as many numbers takes a millisecond or two."""
VERY_LARGE = 1 << 22
"""Bytes from which JSON is read by `json`, which takes several times as long as `orjson`, but can be interrupted."""
PIECE = 1 << 14
"""Values of a list that are converted at once, which takes about a millisecond or a few."""
NUMBER = 16
"""Bytes of text or binary data, such as encoded images, that are read in the time of one byte of numbers in JSON; and
about the bytes of a number."""
FRAME = 1000
"""Commas, and lists or objects, that a request may have besides the values of its tensor."""


def effort(body: bytes) -> int:
    """How long reading a body takes, in bytes of numbers in JSON."""
    return len(body) if len(body) <= LARGE else len(body) // NUMBER + NUMBER * body.count(b",")


def check(text: bytes, shape: tuple[int, ...]) -> None:
    """Refuse JSON that holds more than the largest tensor that is allowed, before its lists are built.

    Args:
        shape: of the largest tensor: images, channels, height, width.
    Raises:
        RequestError: 413, naming the bound.
    """
    if len(text) <= LARGE:
        return
    lists, values = 0, 1
    for size in shape:
        lists, values = lists + values, values * size
    if text.count(b",") > values + FRAME:
        raise too_large(f"inputs[0].data has more values than {shape[0]} images, the most that a request may have")
    if text.count(b"[") + text.count(b"{") > lists + FRAME:
        raise too_large(f"the body has more lists or objects than a tensor of {shape[0]} images needs")


def loads(text: bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError, RecursionError: if it is none.
    """
    if len(text) <= VERY_LARGE:
        return orjson.loads(text)
    # Other threads get their turns when functions of Python are called, such as the first two.
    return json.loads(
        text, parse_int=lambda digits: int(digits), parse_float=lambda digits: float(digits), parse_constant=_refuse
    )


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def numbers(data: Sequence[Any], levels: int) -> NDArray[Any] | None:
    """The array of a list of numbers, or of lists nested in at most this many levels; None if it holds others.

    Raises:
        ValueError: if the lists have other lengths or more levels.
    """
    if data and isinstance(data[0], list):
        if levels == 1 or not all(isinstance(part, list) for part in data):
            raise ValueError("the lists have more levels, or differ in them")
        parts = [numbers(part, levels - 1) for part in data]
    else:
        parts = [_numbers(data[start : start + PIECE]) for start in range(0, max(1, len(data)), PIECE)]
    arrays = [part for part in parts if part is not None]
    if len(arrays) < len(parts):
        return None
    return np.stack(arrays) if data and isinstance(data[0], list) else np.concatenate(arrays)


def _numbers(piece: Sequence[Any]) -> NDArray[Any] | None:
    array = np.asarray(piece)
    boolean = bool in set(map(type, piece))  # which numpy takes for 1 and 0
    return None if array.dtype.kind not in "iuf" or boolean else array


def dumps(value: Mapping[str, Any], name: str, items: Iterable[bytes]) -> bytes:
    """JSON of an object with one more field, a list of items that are JSON already."""
    return b'%s,"%s":[%s]}' % (orjson.dumps(value)[:-1], name.encode(), b",".join(items))


def texts(values: NDArray[Any]) -> Iterator[bytes]:
    """JSON of a flat array's numbers, without brackets, in pieces; numbers that are not finite are null."""
    for start in range(0, len(values), PIECE):
        yield orjson.dumps(values[start : start + PIECE], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
