"""Traces on disk: written while they are computed, read by mapping the file, and refused if they no longer apply."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from offramp import digests, finite
from offramp.device_copies import on_host
from offramp.files import replacing, reserve, write_errors
from offramp.outputs import Batch, ExitOutputs, Trace

FORMAT = "offramp-trace-2"
_BLANK = "0" * 2 * digests.SIZE
"""Placeholder of the digest while the tensors are written."""
_DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


def store(
    path: Path,
    net: nn.Module | Callable[..., ExitOutputs],
    batches: Iterable[Batch],
    samples: int,
    split: str,
    about: dict[str, Any],
    advance: Callable[[int], None] = lambda samples: None,
) -> Trace:
    """Run every exit on the batches and write the logits, in float32, batch by batch into a safetensors file.

    The file is written atomically, and only one batch is in memory at a time.

    Args:
        net: returns `ExitOutputs`; set to eval mode, and left so.
        samples: number of samples in all batches.
        about: what the trace depends on, plain values; `load` returns the trace only for equal values.
    Returns:
        The trace, mapped from the file.
    Raises:
        ValueError: if there are no samples, another number of them, or logits are not finite.
    """
    if isinstance(net, nn.Module):
        net.eval()
    path.parent.mkdir(exist_ok=True)
    with replacing(path, sync=True, shared=True) as draft:
        tensors = _traced(draft, net, batches, samples, {"split": split, "about": about}, advance)
        finite.check([(f"the logits of {split}", tensors["logits"])], "the network")
        _finish(draft, tensors, _digest(tensors, split, json.dumps(about)))
    trace = load(path, about)
    assert trace is not None
    return trace


def _traced(
    draft: Path,
    net: Callable[..., ExitOutputs],
    batches: Iterable[Batch],
    samples: int,
    header: dict[str, Any],
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """The tensors of a new file, filled batch by batch."""
    places: dict[str, np.ndarray] = {}
    start = 0
    with torch.inference_mode():
        for logits, labels, ids in on_host(
            (net(batch.inputs).logits.float(), batch.labels, batch.ids) for batch in batches
        ):
            end = start + logits.shape[1]
            if not places:
                places = _lay_out(draft, (logits.shape[0], samples, logits.shape[2]), header)
            if end > samples:
                raise ValueError(f"the split {header['split']!r} should have {samples} samples, but has more")
            places["logits"][:, start:end] = logits.numpy()
            places["labels"][start:end], places["ids"][start:end] = labels, ids
            start = end
            advance(len(ids))
    if not start:
        raise ValueError(f"the split {header['split']!r} has no samples to trace")
    if start != samples:
        raise ValueError(f"the split {header['split']!r} should have {samples} samples, but has {start}")
    return places


class Damaged(ValueError):
    """A stored trace was changed after it was written; the message names the file."""


def load(path: Path, about: dict[str, Any], ignored: Sequence[str] = ()) -> Trace | None:
    """The stored trace, mapped from the file; None if there is none, or one of other weights, data or precision.

    Args:
        about: what it must have been computed from.
        ignored: keys of `about` that may differ.

    Raises:
        Damaged: if it is this trace, but was changed after it was written.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            if set(file.keys()) != {"logits", "labels", "ids"}:
                return None
        stored, expected = json.loads(header["about"]), json.loads(json.dumps(about))
        if header.get("format") != FORMAT or {**stored, **dict.fromkeys(ignored)} != {
            **expected,
            **dict.fromkeys(ignored),
        }:
            return None
        tensors = _places(path, "c")  # copy on write: torch needs writable memory, the file does not change
        if _digest(tensors, header["split"], header["about"]) != header["blake2b"]:
            raise Damaged(f"{path} was changed since it was written")
        logits, labels, ids = (torch.from_numpy(tensors[name]) for name in ("logits", "labels", "ids"))
        return Trace(logits, labels, ids, header["split"])
    except Damaged:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({' '.join(str(error).split())})") from None


def _digest(tensors: dict[str, np.ndarray], split: str, about: str) -> str:
    return digests.of_arrays(sorted(tensors.items()), split, about)


def _lay_out(path: Path, shape: tuple[int, int, int], origin: dict[str, Any]) -> dict[str, np.ndarray]:
    """A safetensors file of the right size, whose tensors are written in place."""
    metadata = {"format": FORMAT, "split": origin["split"], "about": json.dumps(origin["about"]), "blake2b": _BLANK}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, sizes in (("labels", "I64", shape[1:2]), ("ids", "I64", shape[1:2]), ("logits", "F32", shape)):
        begin, end = end, end + int(np.prod(sizes)) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(sizes), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with write_errors(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        reserve(file.fileno(), 8 + len(text) + end)
    return _places(path, "r+")


def _places(path: Path, mode: Any) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, mapped."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    del header["__metadata__"]
    return {
        name: np.memmap(path, _DTYPES[entry["dtype"]], mode, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def _finish(draft: Path, tensors: dict[str, np.ndarray], digest: str) -> None:
    """Write the tensors to the file and put the digest into its header."""
    for tensor in tensors.values():
        if isinstance(tensor, np.memmap):
            tensor.flush()
    with draft.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        file.seek(8 + header.index(_BLANK.encode()))
        file.write(digest.encode())
