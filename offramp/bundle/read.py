"""Open a bundle: every file checked before it is used, then the same `answer()` as everywhere. Runs without torch."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offramp.argument_types import check_arguments
from offramp.bundle.manifest import MANIFEST, POLICY, Manifest, parse
from offramp.bundle.sessions import ArraySegment, open_segment
from offramp.bundle.single_image import SingleImage
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import parse as parse_policy
from offramp.early_exit.runtime import Answer, answer
from offramp.files import LARGEST_TEXT
from offramp.lookup import ParameterError
from offramp.text import shell_word

if TYPE_CHECKING:
    from offramp.bundle.predict import Prediction

LARGEST = 1 << 31
"""Bytes of a file of a bundle: one ONNX file holds no more."""


@dataclass(frozen=True)
class Bundle:
    """An open bundle.

    `segments` are the opened segments, from number `begin` (counted from 0); by default, all segments.
    """

    folder: Path
    manifest: Manifest
    policy: ExitPolicy
    segments: tuple[ArraySegment, ...]
    begin: int = 0
    _single: SingleImage = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_single", SingleImage(self.segments))

    def answer(self, inputs: NDArray[np.float32]) -> Answer:
        """Results of preprocessed inputs (B, channels, size, size); all segments must be open."""
        return answer(self.segments_for(len(inputs)), self.policy, inputs)

    def segments_for(self, batch: int) -> tuple[ArraySegment, ...]:
        """The segments for a batch of this size; those for a batch of one may return empty states (`single_state`)."""
        return self._single.segments() if batch == 1 and not self.begin else self.segments

    def single_state(self, passed: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Copies of state and carry after `passed` segments for a batch of one, as last run in this thread."""
        return self._single.state(passed)

    def predict(self, images: Iterable[Path | str], *, batch_size: int = 1) -> "Iterator[Prediction]":
        """Label, probability and exit of every image file, in order; files in folders in the order of names.

        Args:
            images: image files, and folders of them.
            batch_size: images per batch; above 1, the time of an image is its share of the time of the batch.
        Yields:
            One prediction per image; one that could not be read has an `error` and no label.
        Raises:
            ParameterError: if the batch size is below 1.
        """
        from offramp.bundle.predict import find, predictions

        if batch_size < 1:
            raise ParameterError(f"batch_size must be at least 1, got {batch_size}", "batch_size")
        files, bad = find([Path(image) for image in images])
        return chain(bad, predictions(self, files, min(batch_size, max(1, len(files)))))


def open_bundle(folder: Path | str, runtime: str = "onnx", begin: int = 0, end: int | None = None) -> Bundle:
    """Open a folder that `offramp export` wrote.

    Args:
        runtime: `onnx` or `openvino`, in float32 on the CPU; `onnx-cuda` or `onnx-tensorrt` on a GPU.
        begin: first segment to open, counted from 0.
        end: segment before which to stop. Files of the other segments need not be there.
    Raises:
        ValueError: naming the file that is missing, changed, or of an unknown version, or the range of segments.
        ImportError: if the runtime is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not 0 <= begin < (len(manifest.parts) if end is None else end) <= len(manifest.parts):
        last = len(manifest.parts) if end is None else end
        raise ValueError(f"{folder} has {len(manifest.parts)} segments: there are none from {begin + 1} to {last}")
    return open_files(folder, manifest, runtime, begin, end)


def open_files(folder: Path, manifest: Manifest, runtime: str, begin: int = 0, end: int | None = None) -> Bundle:
    """Open what a manifest that was read already names; see `open_bundle`."""
    policy = read_policy(folder, manifest)
    classes = len(manifest.classes)
    segments = [
        open_segment(content(folder, manifest, spec.file), spec, runtime, classes=classes)
        for spec in manifest.parts[begin:end]
    ]
    return Bundle(folder, manifest, policy, tuple(segments), begin)


def read_policy(folder: Path, manifest: Manifest) -> ExitPolicy:
    """The policy of a bundle.

    Raises:
        ValueError: if it is missing, changed, or for other exits than there are segments.
    """
    policy = parse_policy(content(folder, manifest, POLICY), str(folder / POLICY))
    enabled = [exit for exit, on in enumerate(policy.enabled) if on]
    if policy.exits != manifest.exits or enabled != [spec.exit for spec in manifest.parts]:
        raise ValueError(f"{folder / POLICY} enables other exits than {folder / MANIFEST} has segments for")
    return policy


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        ValueError: if the folder is not a bundle; see `offramp.bundle.manifest.parse`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / "config.yaml").is_file():
            raise ValueError(
                f"{folder} is a run, not a bundle: `offramp export {shell_word(folder)} --out DIR` creates one from it"
            )
        why = f"it has no {MANIFEST}" if folder.is_dir() else "the folder does not exist"
        raise ValueError(
            f"{folder} is not a bundle: {why} (`offramp export RUN --out {shell_word(folder)}` creates one)"
        )
    if path.is_symlink():
        raise ValueError(f"{path} is a link: a bundle is a folder of plain files; copy what it links to")
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"{path} is damaged: it is larger than the {LARGEST_TEXT >> 20} MiB that it may have")
    return parse(path.read_bytes(), str(path))


def content(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The content of a file of a bundle, read once: what was checked is what is used.

    Raises:
        ValueError: naming the file, if it is missing or changed.
    """
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is missing, though {MANIFEST} names it: export the bundle again")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than the 2 GiB that a file of a bundle may have: export the bundle again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.files[name]:
        raise ValueError(f"{path} is truncated or changed since it was written: export the bundle again")
    return data


@check_arguments
def load_bundle(folder: Path | str, runtime: str = "onnx") -> Bundle:
    """Open a folder that `export` wrote, for `Bundle.predict` and `Bundle.answer`; torch is not needed.

    Args:
        folder: folder of the bundle.
        runtime: `onnx` or `openvino`, in float32 on the CPU; `onnx-cuda` or `onnx-tensorrt` on a GPU.
    Raises:
        ValueError: naming the file that is missing, changed, or of an unknown version.
        ImportError: if the runtime is not installed.
    """
    return open_bundle(folder, runtime)
