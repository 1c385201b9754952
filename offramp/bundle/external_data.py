"""Whether an ONNX model reads other files: tensors with external data, found in the bytes of the file, without onnx.

A runtime would read such files from the working directory, and no digest covers them.
"""

from collections.abc import Iterator

Field = tuple[int, int | memoryview]
"""Number and value of a protobuf field: an integer, or the bytes of a text, a tensor or a message."""

# Where tensors are in the messages of onnx.proto: {message: {field number: message}}.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_DEEPEST = 100


def external_tensor(model: bytes) -> bool:
    """Whether a tensor of the model has its values in another file.

    Raises:
        ValueError: if the bytes are not a protobuf message, or are nested too deeply.
    """
    waiting: list[tuple[str, memoryview, int]] = [("model", memoryview(model), 0)]
    while waiting:
        message, data, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"its graphs are nested more than {_DEEPEST} deep")
        for number, value in _fields(data):
            if message == "tensor":
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    return True
            elif (inner := _MESSAGES[message].get(number)) and isinstance(value, memoryview):
                waiting.append((inner, value, depth + 1))
    return False


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message; see protobuf.dev/programming-guides/encoding."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is not a protobuf message")
        if place + size > len(data):
            raise ValueError("it is truncated")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """An integer of variable length, and where it ends."""
    value = 0
    for index, byte in enumerate(data[place : place + 10]):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, place + index + 1
    raise ValueError("it is truncated")
