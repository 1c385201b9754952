"""The Open Inference Protocol, version 2: tensors in and out, as JSON and as binary data. Runs without torch.

https://github.com/kserve/open-inference-protocol, with the binary tensor data extension of Triton. Nothing is
unpickled; BYTES tensors are encoded images. Which fields and parameters a request may have: `fields.py`; how the JSON
of large ones is read and written: `large_json.py`.
"""

import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from offramp.bundle.read import Bundle
from offramp.serve import fields, large_json
from offramp.serve.errors import malformed, natural, too_large
from offramp.text import quoted, unicode_only

INPUT = "image"
INPUT_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
OUTPUTS = {
    "logits": "FP32",
    "probability": "FP32",
    "class": "INT64",
    "label": "BYTES",
    "exit": "INT64",
    "score": "FP32",
    "ms": "FP32",
    "at_deadline": "BOOL",
    "error": "BYTES",
}
"""Every output with its type; exits are counted from 1, and 0 stands for an image that could not be read."""
_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8"), "BOOL": np.dtype("?")}
EXTENSIONS = ("binary_tensor_data", "model_repository")
LENGTH = "inference-header-content-length"


class InferRequest(NamedTuple):
    """A parsed request.

    Attributes:
        id: to send back.
        inputs: what the network takes, (N, channels, size, size) float32; or pixels, uint8; or N encoded images.
        deadline_ms: of the request.
        outputs: the wanted outputs, and whether each is sent as binary data.
    """

    id: str | None
    inputs: NDArray[Any] | list[bytes]
    deadline_ms: int | float | None
    outputs: dict[str, bool]


def metadata(name: str, versions: Sequence[str], bundle: Bundle) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    shape, classes = list(bundle.manifest.preprocessing.shape), len(bundle.manifest.classes)
    return {
        "name": name,
        "versions": list(versions),
        "platform": "offramp_bundle",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [
            {"name": output, "datatype": kind, "shape": [-1, classes] if output == "logits" else [-1]}
            for output, kind in OUTPUTS.items()
        ],
    }


def parse(body: bytes, header_length: str | None, shape: tuple[int, ...], most: int) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, perhaps followed by binary data.
        header_length: of the JSON in bytes, if binary data follow.
        shape: of one input.
        most: images that a request may have.
    Raises:
        RequestError: 400 or 413, naming the field and what it should be.
    """
    text, binary = _divided(body, header_length)
    large_json.check(text, (most, *shape))
    try:
        request = large_json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed(f"the body cannot be read as JSON, which has no NaN or Infinity: {error}") from None
    if not isinstance(request, dict):
        raise malformed("the body must be a JSON object with `inputs`")
    fields.check(request, "", fields.REQUEST_FIELDS)
    identity, parameters = request.get("id"), fields.parameters(request, "parameters", fields.REQUEST)
    if identity is not None and not isinstance(identity, str):
        raise malformed(f"id must be a text, got {quoted(identity)}")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise malformed(f"inputs must be a list of one tensor, named `{INPUT}`")
    tensor = _tensor(inputs[0], binary, shape, most)
    return InferRequest(
        unicode_only(identity), tensor, fields.deadline(parameters), _outputs(request.get("outputs"), parameters)
    )


def _divided(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    length = natural(header_length)
    if length is None or length > len(body):
        raise malformed(
            f"Inference-Header-Content-Length must be a number up to the {len(body)} bytes of the body, got "
            f"{quoted(header_length)}"
        )
    return body[:length], body[length:]


def _outputs(expected: Any, parameters: Mapping[str, Any]) -> dict[str, bool]:
    binary = _flag(parameters, "binary_data_output", "parameters")
    if expected is None or expected == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(expected, list):
        raise malformed(f"outputs must be a list, got {quoted(expected)}")
    result = {}
    for index, output in enumerate(expected):
        field = f"outputs[{index}]"
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            raise malformed(f"{field}.name must be one of {', '.join(OUTPUTS)}, got {quoted(name)}")
        if name in result:
            raise malformed(f"{field}.name is {name}, which is asked for before: ask once")
        fields.check(output, f"{field}.", fields.OUTPUT_FIELDS)
        options = fields.parameters(output, f"{field}.parameters", fields.OUTPUT)
        result[name] = _flag(options, "binary_data", f"{field}.parameters", binary)
    return result


def _flag(parameters: Mapping[str, Any], name: str, field: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise malformed(f"{field}.{name} must be true or false, got {quoted(value)}")
    return value


def _tensor(tensor: Any, binary: bytes, shape: tuple[int, ...], most: int) -> NDArray[Any] | list[bytes]:
    if not isinstance(tensor, dict) or tensor.get("name") != INPUT:
        name = tensor.get("name") if isinstance(tensor, dict) else tensor
        raise malformed(f"inputs[0].name must be `{INPUT}`, got {quoted(name)}")
    kind: Any = tensor.get("datatype")
    shape_value: Any = tensor.get("shape")
    if kind not in (*INPUT_TYPES, "BYTES"):
        raise malformed(
            "inputs[0].datatype must be FP32 (inputs of the network), UINT8 (pixels) or BYTES (encoded images), got "
            f"{quoted(kind)}"
        )
    sizes = () if kind == "BYTES" else shape
    if not _has_sizes(shape_value, sizes) and not (kind == "BYTES" and _has_sizes(shape_value, (1,))):
        requested = f"[{', '.join(['N', *map(str, sizes)])}]"
        raise malformed(f"inputs[0].shape must be {requested} for the datatype {kind}, got {quoted(shape_value)}")
    count = shape_value[0]
    if count > most:
        raise too_large(f"inputs[0].shape holds {quoted(count)} images, more than the {most} allowed in a request")
    fields.check(tensor, "inputs[0].", fields.INPUT_FIELDS)
    size = fields.parameters(tensor, "inputs[0].parameters", fields.INPUT).get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != len(binary):
            raise malformed(
                f"inputs[0].parameters.binary_data_size must be the {len(binary)} bytes that follow the JSON, got "
                f"{quoted(size)}"
            )
        if "data" in tensor:
            raise malformed("inputs[0] has both data and parameters.binary_data_size: send one of them")
        return _images(binary, count) if kind == "BYTES" else _array(binary, kind, (count, *shape))
    if binary:
        raise malformed(f"inputs[0].parameters.binary_data_size is missing, though {len(binary)} bytes follow the JSON")
    data = tensor.get("data")
    return _from_texts(data, count) if kind == "BYTES" else _from_json(data, kind, (count, *shape))


def _has_sizes(value: Any, sizes: tuple[int, ...]) -> bool:
    """Whether a value of JSON is a number of images and these sizes."""
    if not isinstance(value, list) or any(type(size) is not int for size in value):
        return False
    return len(value) == 1 + len(sizes) and value[0] >= 1 and tuple(value[1:]) == sizes


def _array(data: bytes, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = INPUT_TYPES[kind]
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise malformed(f"inputs[0] has {len(data)} bytes of binary data, its shape {list(shape)} needs {wanted}")
    return _checked(np.frombuffer(data, dtype).reshape(shape))


def _from_json(data: Any, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if not isinstance(data, list):
        raise malformed(f"inputs[0].data must be a list of numbers, got {quoted(data)}")
    try:
        array = large_json.numbers(data, len(shape))
    except ValueError:
        raise malformed(
            "inputs[0].data must be a flat list or lists of equal lengths, nested as inputs[0].shape says"
        ) from None
    if array is None:
        raise malformed(f"inputs[0].data must hold numbers only, for the datatype {kind}")
    if array.size != math.prod(shape) or array.shape not in (shape, (array.size,)):
        raise malformed(
            f"inputs[0].data has {array.size} values in the shape {list(array.shape)}, but inputs[0].shape is "
            f"{list(shape)}"
        )
    if kind == "UINT8" and (array.dtype.kind == "f" or array.min() < 0 or array.max() > 255):
        raise malformed("inputs[0].data must be whole numbers from 0 to 255 for the datatype UINT8")
    with np.errstate(over="ignore"):
        return _checked(array.astype(INPUT_TYPES[kind]).reshape(shape))


def _checked(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise malformed("inputs[0].data holds values that are not finite, or too large for FP32")
    return array


def _images(data: bytes, count: int) -> list[bytes]:
    """Encoded images, each after its length in four bytes."""
    result: list[bytes] = []
    place = 0
    while place + 4 <= len(data) and len(result) < count:
        length = int(struct.unpack_from("<I", data, place)[0])
        result.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    if len(result) != count or place != len(data):
        raise malformed(f"inputs[0] has no {count} images in its binary data: each is preceded by its length")
    return result


def _from_texts(data: Any, count: int) -> list[bytes]:
    """Encoded images as base64 texts."""
    if not isinstance(data, list) or len(data) != count or not all(isinstance(text, str) for text in data):
        raise malformed(f"inputs[0].data must be {count} images as base64 texts for the datatype BYTES")
    try:
        return [pybase64.b64decode(text, validate=True) for text in data]
    except binascii.Error:
        raise malformed("inputs[0].data must be base64 texts for the datatype BYTES; or send binary data") from None


def render(
    name: str, version: str, request: InferRequest, columns: Mapping[str, Sequence[Any] | NDArray[Any]]
) -> tuple[bytes, dict[str, str]]:
    """The response with the wanted outputs: its body and headers.

    Args:
        columns: every output of N images.
    """
    outputs, parts = list[bytes](), list[bytes]()
    for output, binary in request.outputs.items():
        kind = OUTPUTS[output]
        values = columns[output]
        array = unicode_only(list(values)) if kind == "BYTES" else np.asarray(values, _TYPES[kind])
        tensor: dict[str, Any] = {"name": output, "datatype": kind}
        tensor["shape"] = [len(values)] if isinstance(array, Sequence) else list(array.shape)
        if binary:
            parts.append(_packed(array) if isinstance(array, Sequence) else array.tobytes())
            outputs.append(orjson.dumps({**tensor, "parameters": {"binary_data_size": len(parts[-1])}}))
        elif isinstance(array, Sequence):
            outputs.append(orjson.dumps({**tensor, "data": array}))
        else:
            outputs.append(large_json.dumps(tensor, "data", large_json.texts(array.ravel())))
    answer = {"model_name": name, "model_version": version} | ({} if request.id is None else {"id": request.id})
    text = large_json.dumps(answer, "outputs", outputs)
    if not parts:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return b"".join([text, *parts]), headers


def _packed(texts: Sequence[str]) -> bytes:
    parts = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)
