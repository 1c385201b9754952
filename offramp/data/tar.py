"""WebDataset shards, plain tar files of images with their labels: tar:PATH, streamed in bounded memory."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64, UInt8

from offramp.data._cache import VERSION, cache_root
from offramp.data._decode import SAMPLE, Encoded, Interpolation, Shape, each_image, guess_size, image_notes
from offramp.data._duplicates import groups_of
from offramp.data._shards import usual_augmentation
from offramp.data._tables import shards_by_split
from offramp.data._tar_index import Sample, labels_of, samples_of
from offramp.data.folder import Cut, centre, look_at, look_through, random_box, random_window, remember, remembered
from offramp.data.load import NORMALISE
from offramp.data.parquet import located
from offramp.data.splits import Indices, RawDataSet, Request, consecutive
from offramp.images import BadImage, Fit, decode


def build(
    request: Request,
    *,
    resize: int | None = None,
    crop: float | None = None,
    interpolation: Interpolation = "bilinear",
    check: Literal["full", "headers"] = "full",
) -> RawDataSet:
    """Images and labels of tar shards; which split a shard belongs to, its name says (or its folder's).

    A sample is the members of one name: an image (jpg, jpeg, png, webp) and its label (cls, or json with `label` or
    `cls`). Shards are indexed once; then each image is read where it lies, so that order, splits and resumed runs are
    those of images in memory.

    Args:
        request: from `load`; `image_size` is the side of the square that images get.
        resize: shorter side before the centre crop; default 256/224 of the size, the size itself up to 64.
        crop: alternative to `resize`: size / resize, such as 0.875.
        interpolation: how images are resized, with antialiasing.
        check: `full` decodes every image once, before the first training on these files, so that no bad one stops a
            run; `headers` only looks at their beginnings.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no shard in it.
        ValueError: if a shard, a label or an image is bad, naming shard and sample.
    """
    if not request.path:
        raise ValueError("tar needs a path: write tar:PATH, a file or a folder of shards")
    root = located(request)
    files = sorted(path for path in root.rglob("*.tar") if path.is_file()) if root.is_dir() else [root]
    if not files:
        raise FileNotFoundError(f"{root} contains no *.tar files: name the folder of the shards")
    parts = {split: [samples_of(file) for file in group] for split, group in shards_by_split(root, files).items()}
    samples = [sample for group in parts.values() for shard in group for sample in shard]
    labels, classes = labels_of(samples)
    fit = _fit(samples, request, Shape(resize, crop, interpolation))
    facts = _checked(request, files, samples, full=check == "full")
    counts = {split: sum(map(len, group)) for split, group in parts.items()}
    source = TarSource(request.name, classes, labels, samples, root if root.is_dir() else root.parent, fit)
    mean, std = NORMALISE["imagenet"]
    notes = image_notes(request.name, facts["remarks"])
    augmentation = usual_augmentation(fit.size)
    return RawDataSet(source, consecutive(counts), mean, std, augmentation, notes, fit, facts["duplicates"])


def _fit(samples: Sequence[Sample], request: Request, shape: Shape) -> Fit:
    every = max(1, len(samples) // SAMPLE)
    return shape.fit(request.image_size or guess_size([sample.read() for sample in samples[::every]]))


def _checked(request: Request, files: Sequence[Path], samples: Sequence[Sample], *, full: bool) -> dict[str, Any]:
    """Look at every image once; the facts are kept in the cache by names, sizes and times of the shards."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.blake2b(json.dumps([VERSION, "tar", full, stats]).encode(), digest_size=16).hexdigest()
    record = cache_root(request.cache_dir) / f"checked-{key}.json"
    facts = remembered(record)
    if facts is None:
        digests: dict[int, bytes] = {}

        def look(index: int, data: bytes | Path) -> tuple[str, ...]:
            assert isinstance(data, bytes)
            if not full:
                return look_at(data)
            digests[index] = hashlib.blake2b(data, digest_size=16).digest()
            return look_through(data)

        encoded = (Encoded(sample.read(), str(sample)) for sample in samples)
        title = f"checking {request.name}"
        remarks = each_image(encoded, len(samples), look, name=request.name, title=title, progress=request.progress)
        facts = {"remarks": remarks, "duplicates": groups_of(digests[index] for index in sorted(digests))}
        remember(record, facts)
    return facts


@dataclass(frozen=True)
class TarSource:
    """Images that stay in their shards, decoded anew for every batch: bounded memory, whatever their number."""

    name: str
    classes: tuple[str, ...]
    labels: Int64[np.ndarray, "N"]
    samples: Sequence[Sample]
    root: Path
    fit: Fit
    streaming: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.fit.size, self.fit.size

    def __len__(self) -> int:
        return len(self.samples)

    def identities(self, rows: Indices) -> list[bytes]:
        """What tells images apart without reading them: shard, name and size."""
        samples = [self.samples[row] for row in rows]
        return [os.fsencode(f"{os.path.relpath(one.shard, self.root)} {one.key} {one.size}") for one in samples]

    def contents(self, rows: Indices) -> Iterable[bytes]:
        """The encoded images."""
        return self._read(rows)

    def _read(self, rows: Indices) -> Iterator[bytes]:
        return (self.samples[row].read() for row in rows)

    def batch(self, indices: Indices) -> UInt8[np.ndarray, "B 3 H W"]:
        """The images of these rows, resized and cropped to the centre.

        Raises:
            ValueError: if a shard was changed since it was checked, with shard and sample.
        """
        return self._decoded(indices, centre(self.fit))

    def crops(self, indices: Indices, draws: Float[Any, "B 10 4"]) -> UInt8[np.ndarray, "B 3 H W"]:
        """A random part of each image, resized; `draws` as `offramp.data.augment.boxes` takes them."""
        return self._decoded(indices, random_box(self.fit, draws))

    def windows(self, indices: Indices, draws: Float[Any, "B 2"]) -> UInt8[np.ndarray, "B 3 H W"]:
        """A random square of each image once its shorter side is resized; `draws` say where, in [0, 1)."""
        return self._decoded(indices, random_window(self.fit, draws))

    def _decoded(self, indices: Indices, cut: Cut) -> np.ndarray:
        out = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for place, row in enumerate(indices):
            try:
                out[place] = decode(self.samples[row].read(), partial(cut, place=place))[0]
            except BadImage as error:
                raise ValueError(f"{self.samples[row]} cannot be decoded ({error}): make the shard again") from error
        return out
