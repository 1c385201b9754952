"""Index of WebDataset shards: samples are the members of a tar file that share a name."""

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from offramp.lookup import with_parameters

BLOCK = 512
IMAGES = ("jpg", "jpeg", "png", "webp")
LARGEST_LABEL = 1 << 20
"""Bytes of a label."""


class Member(NamedTuple):
    """Position of a file in a shard, in bytes."""

    offset: int
    size: int


class TarSample(NamedTuple):
    """An image in a shard, and its label as text or number."""

    shard: Path
    key: str
    offset: int
    size: int
    label: str | int

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}"


@dataclass(frozen=True)
class TarImages:
    """The images of tar shards, each read from its place."""

    samples: Sequence[TarSample]
    root: Path

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, row: int) -> bytes:
        """The encoded image."""
        sample = self.samples[row]
        return _read(sample.shard, Member(sample.offset, sample.size))

    def where(self, row: int) -> str:
        """Shard and name."""
        return str(self.samples[row])

    def identity(self, row: int) -> bytes:
        """Shard below the root, name and size."""
        sample = self.samples[row]
        return os.fsencode(f"{os.path.relpath(sample.shard, self.root)} {sample.key} {sample.size}")


def _read(shard: Path, member: Member) -> bytes:
    with shard.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def samples_of(shard: Path, skipped: list[str] | None = None) -> list[TarSample]:
    """The samples of a shard, in order; members that belong to no image are left out.

    Args:
        shard: A tar file.
        skipped: Takes a line for a shard that is damaged, of which what comes before the damage is used; None: such a
            shard is an error.

    Raises:
        ValueError: naming the shard if it is compressed, damaged or truncated, and the sample whose label is missing,
            whose name occurs twice, or that has several images.
    """
    members: dict[str, dict[str, Member]] = {}
    before = len(skipped or ())
    every = _members(shard, skipped)
    cut = len(skipped or ()) > before
    for name, member in every:
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        files = members.setdefault(f"{folder}{slash}{stem}", {})
        if files.setdefault(ending.lower(), member) is not member:
            raise ValueError(f"{shard} contains {name} twice: give every sample a name of its own")
    samples = []
    for key, files in members.items():
        kinds = [ending for ending in IMAGES if ending in files]
        if len(kinds) > 1:
            raise ValueError(f"{shard}: {key} has several images ({', '.join(kinds)}): keep one of them")
        image = files[kinds[0]] if kinds else None
        complete = not cut or key != [*members][-1] or "cls" in files or "json" in files
        if image is not None and complete:
            samples.append(TarSample(shard, key, image.offset, image.size, _label(shard, key, files)))
    if not samples and not cut:
        raise ValueError(f"{shard} contains no images ({', '.join(IMAGES)})")
    return samples


def _members(shard: Path, skipped: list[str] | None) -> list[tuple[str, Member]]:
    """Name and place of every file in the shard, from its headers alone."""
    entries: list[tuple[str, Member]] = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for one in archive:
                if one.isfile():
                    entries.append((one.name, Member(one.offset_data, one.size)))
            if _read(shard, Member(archive.offset, BLOCK)) == bytes(BLOCK):
                return entries
    except (tarfile.TarError, OSError, EOFError) as error:
        if not entries:
            return _damaged([], f"{shard} is no plain tar file ({error}): unpack .tar.gz, or make it again", skipped)
    end = shard.stat().st_size
    whole = [(name, member) for name, member in entries if member.offset + member.size <= end]
    last = f" after {whole[-1][0]}" if whole else ""
    return _damaged(whole, f"{shard} is damaged or truncated{last}: make it again", skipped)


def _damaged(whole: list[tuple[str, Member]], message: str, skipped: list[str] | None) -> list[tuple[str, Member]]:
    """The members before the damage, if it is to be skipped.

    Raises:
        ValueError: else.
    """
    if skipped is None:
        raise with_parameters(ValueError(f"{message}, or leave the rest out by skip_damaged"), "skip_damaged")
    skipped.append(f"{message.partition(':')[0]}: the rest was left out ({len(whole)} files before it are used)")
    return whole


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


def labels_of(root: Path, samples: Sequence[TarSample]) -> tuple[Int64[np.ndarray, "N"], tuple[str, ...]]:
    """The class index of every sample, and the names of the classes: the distinct labels, sorted.

    Raises:
        ValueError: if some labels are numbers and others names, with a sample of each; if there is no sample.
    """
    if not samples:
        raise ValueError(f"{root}: no shard has an image that could be read")
    kinds = {type(sample.label): sample for sample in reversed(samples)}
    if len(kinds) > 1:
        first, other = kinds.values()
        raise ValueError(f"{other} has the label {other.label!r}, but {first} has {first.label!r}: store them alike")
    numbers = isinstance(samples[0].label, int)
    distinct = sorted({sample.label for sample in samples}, key=lambda label: (label if numbers else 0, str(label)))
    place = {label: index for index, label in enumerate(distinct)}
    return np.array([place[sample.label] for sample in samples], dtype=np.int64), tuple(map(str, distinct))
