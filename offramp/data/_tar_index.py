"""What lies where in WebDataset shards: samples are the members of a tar file that share a name."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

BLOCK = 512
IMAGES = ("jpg", "jpeg", "png", "webp")
LARGEST_LABEL = 1 << 20
"""Bytes of a label."""


class Member(NamedTuple):
    """Where a file lies in a shard, in bytes."""

    offset: int
    size: int


class Sample(NamedTuple):
    """An image in a shard, and its label as text or number."""

    shard: Path
    key: str
    offset: int
    size: int
    label: str | int

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}"

    def read(self) -> bytes:
        """The encoded image."""
        return _read(self.shard, Member(self.offset, self.size))


def _read(shard: Path, member: Member) -> bytes:
    with shard.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def samples_of(shard: Path) -> list[Sample]:
    """The samples of a shard, in order; members that belong to no image are left out.

    Raises:
        ValueError: naming the shard if it is compressed, damaged or truncated, and the sample whose label is missing.
    """
    members: dict[str, dict[str, Member]] = {}
    for name, member in _members(shard):
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        members.setdefault(f"{folder}{slash}{stem}", {})[ending.lower()] = member
    samples = []
    for key, files in members.items():
        image = next((files[ending] for ending in IMAGES if ending in files), None)
        if image is not None:
            samples.append(Sample(shard, key, image.offset, image.size, _label(shard, key, files)))
    if not samples:
        raise ValueError(f"{shard} contains no images ({', '.join(IMAGES)})")
    return samples


def _members(shard: Path) -> list[tuple[str, Member]]:
    """Name and place of every file in the shard, from its headers alone."""
    try:
        with tarfile.open(shard, "r:") as archive:
            entries = [(one.name, Member(one.offset_data, one.size)) for one in archive if one.isfile()]
            end = archive.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{shard} is no plain tar file ({error}): unpack .tar.gz, or make the shard again") from error
    if _read(shard, Member(end, BLOCK)) != bytes(BLOCK):
        last = f" after {entries[-1][0]}" if entries else ""
        raise ValueError(f"{shard} is damaged or truncated{last}: make the shard again")
    return entries


def _label(shard: Path, key: str, files: dict[str, Member]) -> str | int:
    member = files.get("cls") or files.get("json")
    if member is None or member.size > LARGEST_LABEL:
        raise ValueError(f"{shard}: {key} has no label: add {key}.cls, or {key}.json with `label`")
    text = _read(shard, member).decode("utf-8", "replace").strip()
    if "cls" not in files:
        try:
            values = json.loads(text)
            text = str(values["label"] if "label" in values else values["cls"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"{shard}: {key}.json contains neither `label` nor `cls`") from None
    if not text:
        raise ValueError(f"{shard}: the label of {key} is empty")
    return int(text) if text.isdecimal() and text.isascii() else text


def labels_of(samples: Sequence[Sample]) -> tuple[Int64[np.ndarray, "N"], tuple[str, ...]]:
    """The class index of every sample, and the names of the classes: the distinct labels, sorted.

    Raises:
        ValueError: if some labels are numbers and others names, with a sample of each.
    """
    kinds = {type(sample.label): sample for sample in reversed(samples)}
    if len(kinds) > 1:
        first, other = kinds.values()
        raise ValueError(f"{other} has the label {other.label!r}, but {first} has {first.label!r}: store them alike")
    numbers = isinstance(samples[0].label, int)
    distinct = sorted({sample.label for sample in samples}, key=lambda label: (label if numbers else 0, str(label)))
    place = {label: index for index, label in enumerate(distinct)}
    return np.array([place[sample.label] for sample in samples], dtype=np.int64), tuple(map(str, distinct))
