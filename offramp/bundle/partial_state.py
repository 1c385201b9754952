"""Samples that continue elsewhere as one file: the first segments run here, the rest elsewhere. Runs without torch.

An uncompressed .npz of plain arrays: what the last segment handed on, what the policy looks back at, and a JSON header
with the images' names and the digest of the bundle's manifest. Nothing in it is unpickled.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Manifest, TensorSpec
from offramp.bundle.read import Bundle
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import Stepper, resume
from offramp.files import replacing
from offramp.lookup import with_parameters
from offramp.text import one_line, quoted

FORMAT, VERSION = "offramp-state", 1
HEADER = "header"
LARGEST = 1 << 33  # bytes of a state file that is read into memory

Array = NDArray[Any]


@dataclass(frozen=True)
class PartialState:
    """Images that have passed some segments and have not exited.

    `passed` segments ran; `names` of the N images; `arrays` by name, each with N rows: the state and carry that the
    next segment takes, and `judged_*`, the carry of the policy.
    """

    passed: int
    names: tuple[str, ...]
    arrays: Mapping[str, Array]

    def stepper(self, bundle: Bundle, rows: slice) -> Stepper:
        """A stepper that continues with some of the images."""
        spec = bundle.manifest.parts[self.passed]
        state = tuple(self.arrays[port.name][rows] for port in spec.takes_state)
        carry = tuple(self.arrays[port.name][rows] for port in spec.takes_carry)
        policy_carry = {key[7:]: value[rows] for key, value in self.arrays.items() if key.startswith("judged_")}
        return resume(bundle.policy, self.passed, state, carry, policy_carry)


def gather(
    manifest: Manifest, policy: ExitPolicy, steppers: Sequence[tuple[Stepper, Sequence[str]]], passed: int
) -> PartialState:
    """What is left of several batches, each with the names of its images, all stopped after `passed` segments."""
    names: list[str] = []
    rows: dict[str, list[Array]] = {}
    spec = manifest.parts[passed]
    for stepper, images in steppers:
        if not len(stepper.alive):
            continue  # all of them left, perhaps before the last segment that ran
        names += [images[row] for row in stepper.alive.tolist()]
        tensors = dict(zip((p.name for p in spec.takes_state + spec.takes_carry), (*stepper.state, *stepper.carry)))
        tensors |= {f"judged_{key}": value for key, value in stepper.policy_carry.items()}
        for key, value in tensors.items():
            rows.setdefault(key, []).append(value)
    kinds = _expected(manifest, policy, passed)
    empty = {key: np.zeros((0, *port.shape), port.dtype) for key, port in kinds.items()}
    arrays = {key: np.concatenate([empty[key], *rows.get(key, [])]) for key in kinds}
    return PartialState(passed, tuple(names), arrays)


def save(partial: PartialState, path: Path, manifest: Manifest) -> None:
    """Write the file, whole or not at all."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "bundle": manifest.digest,
        "passed": partial.passed,
        "names": partial.names,
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with replacing(path, shared=True) as draft, draft.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{HEADER: text, **partial.arrays})


def load(path: Path, bundle: Bundle) -> PartialState:
    """Read a state file for a bundle that was opened from the segment at which it continues.

    Raises:
        ValueError: if it is not a state file, is damaged, of another bundle, or meant for another segment.
    """
    arrays = _arrays(path)
    header = _header(path, arrays.pop(HEADER, None))
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has state version {quoted(header.get('version'))}; this offramp reads version {VERSION}"
        )
    if header.get("bundle") != bundle.manifest.digest:
        raise ValueError(f"{path} was written by another bundle than {bundle.folder}: both sides need the same")
    passed, names = header.get("passed"), header.get("names")
    if passed != bundle.begin:
        raise with_parameters(
            ValueError(f"{path} passed {passed} segments: continue with from_={passed}, not {bundle.begin}"), "from_"
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is damaged: it names no images")
    for key, port in _expected(bundle.manifest, bundle.policy, passed).items():
        array, expected_shape = arrays.get(key), (len(names), *port.shape)
        if array is None or array.shape != expected_shape or array.dtype != port.dtype:
            problem = "is missing" if array is None else f"is {array.dtype} {array.shape}"
            raise ValueError(f"{path} is damaged: {key} {problem}, not {port.dtype} {expected_shape}")
    return PartialState(passed, tuple(names), arrays)


def _expected(manifest: Manifest, policy: ExitPolicy, passed: int) -> dict[str, TensorSpec]:
    """Every array that goes over to segment number `passed`, with its shape without the batch."""
    spec = manifest.parts[passed]
    ports = [*spec.takes_state, *spec.takes_carry]
    if passed:  # what the policy carries is what it returns for no samples
        logits = np.zeros((0, len(manifest.classes)), np.float32)
        carried, *_ = policy.step({}, logits, manifest.parts[passed - 1].exit)
        ports += [TensorSpec(f"judged_{key}", array.shape[1:], str(array.dtype)) for key, array in carried.items()]
    return {port.name: port for port in ports}


def _arrays(path: Path) -> dict[str, Array]:
    """The arrays of an uncompressed .npz, so that no small file becomes large in memory."""
    if not path.is_file():
        raise ValueError(f"there is no such state file: {path}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than the {LARGEST >> 30} GiB that a state file may have")
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in archive.infolist()}
    except Exception as error:  # damaged archives fail in many ways
        raise ValueError(f"{path} is not a state file, or is damaged: {one_line(str(error), 200)}") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """One array; its header may claim no more memory than the file has bytes."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{quoted(member.filename)} has an unknown format")
        shape, fortran, dtype = readers[version](stream)
        data = stream.read()
    if dtype.hasobject or fortran or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{quoted(member.filename)} does not hold the plain numbers that its header names")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)


def _header(path: Path, text: Array | None) -> dict[str, Any]:
    try:
        header = json.loads(b"" if text is None else text.tobytes())
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is not an offramp state file")
    return header
