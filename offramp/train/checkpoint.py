"""Checkpoints: folders written whole or not at all, with a version and the digest of each file."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp import digests, finite
from offramp.device_copies import to_host
from offramp.files import DRAFT, parse_json, read_json, replacing, sync_to_disk, usual_permissions, write_errors
from offramp.lookup import with_parameters
from offramp.text import quoted

VERSION = 1
_NAME = re.compile(r"step-\d{9}")
KEPT = 2
"""Number of checkpoints kept: the newest, and the previous one in case the newest is damaged."""


LARGEST = 1 << 16
"""Maximum side of an image in pixels."""
ABOUT = {"epoch": int, "classes": [str], "shape": [int], "val_accuracy": ([(float, None)], None)}
"""Content of the header of weights files; see `offramp.schema`."""


class Checkpoint(NamedTuple):
    """The network's weights, and everything else that the run needs to continue."""

    path: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]


class Damaged(ValueError):
    """A checkpoint or weights file that cannot be used; the message names it and says why."""


def save(folder: Path, step: int, weights: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
    """Write `folder/step-<step>` atomically and delete all but the newest checkpoints.

    Args:
        weights: the network's state_dict.
        state: tensors and plain values only (it is read back with weights_only).
    """
    final = folder / f"step-{step:09d}"

    def write(part: Path) -> None:
        part.mkdir(parents=True)
        _save_tensors(_contiguous(weights), part / "weights.safetensors", None)
        with write_errors(part / "state.pt"):
            torch.save(to_host(state), part / "state.pt")
        written = {name: digests.of_file(part / name) for name in ("weights.safetensors", "state.pt")}
        manifest = {"format": "offramp-checkpoint", "version": VERSION, "step": step, "blake2b": written}
        with write_errors(part / "checkpoint.json"):
            (part / "checkpoint.json").write_text(json.dumps(manifest, indent=2))

    put(final, write)
    for old in _all(folder)[:-KEPT]:
        _remove(old)
    return final


def put(final: Path, write: Callable[[Path], None]) -> None:
    """Write the folder of a checkpoint, which is complete or absent.

    Args:
        write: writes its files into a folder, which it creates.
    """
    folder, part = final.parent, final.with_name(f"{DRAFT}{final.name}")
    for abandoned in folder.glob(f"{DRAFT}*"):
        _remove(abandoned)
    try:
        write(part)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for file in part.iterdir():
        sync_to_disk(file)
    if final.exists():
        _remove(final)
    part.replace(final)
    sync_to_disk(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        Damaged: if it is not a checkpoint of offramp, of another version, or a file is missing, truncated or changed.
    """
    try:
        manifest = read_json(path / "checkpoint.json")
    except ValueError as error:
        raise Damaged(f"{path} is not a checkpoint of offramp: {error}") from None
    if manifest.get("format") != "offramp-checkpoint":
        raise Damaged(f"{path} is not a checkpoint of offramp")
    if manifest.get("version") != VERSION:
        raise Damaged(
            f"{path} has checkpoint version {quoted(manifest.get('version'))}; this offramp reads version {VERSION}"
        )
    expected = manifest.get("blake2b")
    for name in ("weights.safetensors", "state.pt"):
        known = expected.get(name) if isinstance(expected, dict) else None
        if known is None or not (path / name).is_file() or digests.of_file(path / name) != known:
            raise Damaged(f"{path / name} is missing, truncated or changed since it was written")
    try:
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    except Exception:  # a manipulated file fails in many ways
        raise Damaged(f"{path / 'state.pt'} contains something other than tensors and plain values") from None
    try:
        return Checkpoint(path, load_file(path / "weights.safetensors"), state)
    except SafetensorError as error:
        raise Damaged(f"{path / 'weights.safetensors'} cannot be read as safetensors: {error}") from None


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and one sentence for each newer one that is not valid."""
    refused: list[str] = []
    for path in reversed(_all(folder)):
        try:
            return load(path), refused
        except Damaged as error:
            refused.append(str(error))
    return None, refused


def to_resume(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that a run continues from, `None` if it has none; `note` receives what was skipped.

    Raises:
        Damaged: if there are checkpoints and none is valid.
    """
    newest, refused = latest(folder)
    if newest is None and refused:
        message = f"{refused[0]}, and no other checkpoint is intact; choose another out to start over"
        raise with_parameters(Damaged(message), "out")
    for sentence in refused:
        note(f"{sentence}; taking the checkpoint before it")
    return newest


def save_weights(path: Path, weights: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    """Write weights alone, atomically; `about` (epoch, accuracies) goes into the file's header.

    Returns:
        The digest of names, values and `about`, which the header holds too.
    """
    tensors = _contiguous(weights)
    text = json.dumps({key: value for key, value in about.items() if key != "digest"})
    digest = digests.of_weights(tensors, text)
    with replacing(path, sync=True) as draft:
        _save_tensors(tensors, draft, {"format": "offramp-weights", "about": text, "blake2b": digest})
    return digest


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and their header; `about["digest"]` is that of `digests.of_weights`.

    Raises:
        Damaged: if the file is missing, truncated, changed, not written by offramp, or a value is not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "about" not in metadata:
                raise Damaged(f"{path} was not written by offramp: its header says nothing of the run")
            about = _about(metadata["about"], path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path} cannot be read as safetensors: {error}; restore it, or train again") from None
    try:
        finite.check(tensors.items(), path)
    except ValueError as error:
        raise Damaged(str(error)) from None
    digest = digests.of_weights(tensors, metadata["about"])
    if metadata.get("blake2b", digest) != digest:
        raise Damaged(f"{path} was changed since it was written: restore it, or train again")
    return tensors, {**about, "digest": digest}


def _about(text: str, path: Path) -> dict[str, Any]:
    """The header of a weights file, checked."""
    try:
        about: dict[str, Any] = parse_json(text, f"{path}: its header", ABOUT)
        if not about["classes"] or len(about["shape"]) != 3 or not all(0 < side <= LARGEST for side in about["shape"]):
            raise ValueError(f"{path} is damaged: its header names images {about['shape']} in no classes or sizes")
    except ValueError as error:
        raise Damaged(str(error)) from None
    return about


def _all(folder: Path) -> list[Path]:
    """The checkpoints, oldest first; other files are ignored."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _contiguous(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors stores them: one of several names of a tensor is written as a copy."""
    stored, written = {}, set()
    for name, tensor in to_host(dict(weights)).items():
        tensor = tensor.contiguous()
        stored[name] = tensor.clone() if tensor.data_ptr() in written else tensor
        written.add(tensor.data_ptr())
    return stored


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    """Write safetensors with the usual file permissions; the library restricts them to the owner."""
    with write_errors(path), usual_permissions(path):
        save_file(tensors, path, metadata=metadata)
