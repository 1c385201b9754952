"""Which fields and parameters an inference request may have: no other is ignored. Runs without torch.

A misspelt `deadline_ms` would change the answer without a word, so what is not known is refused. What the protocol, its
extensions and the clients of Triton and KServe define is honoured if it can be, accepted where it says nothing, and
refused with a sentence of its own where ignoring it would change what the request means:

- `deadline_ms`, `binary_data_output`, `binary_data`, `binary_data_size` are honoured, and so is Triton's `timeout`
  (microseconds, 0 for none), after which a server may do what its models do: here, answer with the best exit so far.
- `priority` 0 (the default) and `sequence_id` 0 or "" (no sequence) say nothing; other values would promise an order or
  a state between requests. `sequence_start` and `sequence_end` belong to a sequence. `classification` 0 says nothing;
  others change the form of an output. Shared memory would make the server read and write elsewhere.
- `model_name`, which KServe's client sends, repeats the address, and the address decides, as with KServe's own server.
- `headers` and `triton_...` are reserved for Triton itself, and no client sends them: they are unknown here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from offramp.lookup import nearest
from offramp.serve.errors import malformed
from offramp.text import quoted

REQUEST_FIELDS = ("inputs", "outputs", "parameters", "id", "model_name")
INPUT_FIELDS = ("name", "datatype", "shape", "data", "parameters")
OUTPUT_FIELDS = ("name", "parameters")
REQUEST, INPUT, OUTPUT = ("deadline_ms", "binary_data_output", "timeout"), ("binary_data_size",), ("binary_data",)
"""Parameters of a request, of its input and of an output that are honoured."""

_MEMORY = "send the data in the request, and read outputs from the response"
_SEQUENCE = "every image is classified for itself"
UNSUPPORTED: Mapping[str, str] = {
    "priority": "send deadline_ms, by which requests are ordered",
    "sequence_id": _SEQUENCE,
    "sequence_start": _SEQUENCE,
    "sequence_end": _SEQUENCE,
    "classification": "ask for the outputs class and probability",
    "shared_memory_region": _MEMORY,
    "shared_memory_byte_size": _MEMORY,
    "shared_memory_offset": _MEMORY,
}
"""Parameters of Triton, and why they are refused, unless their value says nothing: 0, "", false or null."""
LONGEST_MS = 1e9


def check(value: Mapping[str, Any], place: str, known: Iterable[str]) -> None:
    """Refuse an unknown field of an object in a request.

    Args:
        place: what comes before the name of the field, such as `inputs[0].`.
    Raises:
        RequestError: 400, naming the field and the nearest one that exists.
    """
    known = tuple(known)
    for name in value:
        if name not in known:
            raise malformed(f"{place}{_name(name)} is unknown; {nearest(name, known)}")


def parameters(value: Mapping[str, Any], place: str, known: Iterable[str]) -> Mapping[str, Any]:
    """The `parameters` of a request, an input or an output.

    Args:
        place: the field's name, for the error.
        known: parameters that are honoured there.
    Raises:
        RequestError: 400, if they are no object, or if one of them is unknown or not supported.
    """
    result = value.get("parameters")
    if result is None:
        return {}
    if not isinstance(result, dict):
        raise malformed(f"{place} must be an object, got {quoted(result)}")
    for name, setting in result.items():
        if name in UNSUPPORTED:
            if setting:
                raise malformed(f"{place}.{name} is not supported: {UNSUPPORTED[name]}")
        elif name not in known:
            raise malformed(f"{place}.{_name(name)} is unknown; {nearest(name, known)}")
    return result


def deadline(values: Mapping[str, Any]) -> int | float | None:
    """Milliseconds of the parameter `deadline_ms`, or of Triton's `timeout`, which has microseconds; None: neither."""
    milliseconds, timeout = values.get("deadline_ms"), values.get("timeout")
    if milliseconds is not None and (type(milliseconds) not in (int, float) or not 0 < milliseconds < LONGEST_MS):
        raise malformed(f"parameters.deadline_ms must be a positive number of milliseconds, got {quoted(milliseconds)}")
    if timeout is not None and (type(timeout) is not int or not 0 <= timeout < 1000 * LONGEST_MS):
        raise malformed(f"parameters.timeout must be a whole number of microseconds, got {quoted(timeout)}")
    if timeout and milliseconds is not None:
        raise malformed("parameters has both deadline_ms and timeout: send one of them")
    result: int | float | None = timeout / 1000 if timeout else milliseconds
    return result


def _name(name: str) -> str:
    """A name in an error: as it is, if it is one."""
    return name if name.isidentifier() and len(name) < 50 else quoted(name)
