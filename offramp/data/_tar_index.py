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

from offramp.data._labels import one_spelling
from offramp.images import ENDINGS
from offramp.lookup import with_parameters
from offramp.text import quantity

BLOCK = 512
CHUNK = 1 << 20
"""Bytes that are compared at a time."""
IMAGES = tuple(sorted(ending.removeprefix(".") for ending in ENDINGS))
LABELS = ("cls", "json")
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


def samples_of(shard: Path, notes: list[str], *, skip: bool = False) -> list[TarSample]:
    """The samples of a shard, in order; members that belong to no image are left out.

    Args:
        shard: A tar file.
        notes: Takes a line if the shard is empty, if samples are left out since they have no image, or if it is damaged
            and `skip` is set.
        skip: Use what comes before the damage; otherwise, a damaged shard is an error.

    Raises:
        ValueError: naming the shard if it is compressed, damaged or truncated, or has files but no images, and the
            sample whose label is missing, whose name occurs twice, or that has several images.
    """
    members: dict[str, dict[str, Member]] = {}
    every, whole = _members(shard, notes, skip)
    for name, member in every:
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        files = members.setdefault(f"{folder}{slash}{stem}", {})
        if files.setdefault(ending.lower(), member) is not member:
            raise ValueError(f"{shard} contains {name} twice: give every sample a name of its own")
    if not whole and members and not {*LABELS} & members[last := [*members][-1]].keys():
        del members[last]  # its label was after the damage
    samples, without = [], []
    for key, files in members.items():
        kinds = [ending for ending in IMAGES if ending in files]
        if len(kinds) > 1:
            raise ValueError(f"{shard}: {key} has several images ({', '.join(kinds)}): keep one of them")
        if kinds:
            image = files[kinds[0]]
            samples.append(TarSample(shard, key, image.offset, image.size, _label(shard, key, files)))
        elif {*LABELS} & files.keys():
            without.append(key)
    if whole and every and not samples:
        raise ValueError(f"{shard} contains no images ({', '.join(IMAGES)})")
    if not every and whole:
        notes.append(f"{shard} is empty")
    if without:
        shown = ", ".join(without[:3]) + ", …" * (len(without) > 3)
        notes.append(f"{shard}: {quantity(len(without), 'sample')} without an image, left out ({shown})")
    return samples


def _members(shard: Path, notes: list[str], skip: bool) -> tuple[list[tuple[str, Member]], bool]:
    """Name and place of every file in the shard, from its headers alone, and whether the shard is whole.

    A hard link has the place of the file that it is a link to.
    """
    entries: dict[str, Member] = {}
    listed: list[tuple[str, Member]] = []
    rest = "is damaged or truncated"
    try:
        with tarfile.open(shard, "r:") as archive:
            for one in archive:
                if one.isfile():
                    entries[one.name] = Member(one.offset_data, one.size)
                elif one.islnk() and one.linkname in entries:
                    entries[one.name] = Member(*entries[one.linkname])
                else:
                    continue
                listed.append((one.name, entries[one.name]))
            if _read(shard, Member(archive.offset, BLOCK)) == bytes(BLOCK):
                if _is_empty_after(shard, archive.offset):
                    return listed, True
                rest = "continues beyond its end, as damaged or joined tar files do,"
    except (tarfile.TarError, OSError, EOFError) as error:
        if not listed:
            message = f"{shard} is no plain tar file ({error}): unpack .tar.gz, or make it again"
            return _damaged([], message, notes, skip), False
    end = shard.stat().st_size
    readable = [(name, member) for name, member in listed if member.offset + member.size <= end]
    last = f" after {readable[-1][0]}" if readable else ""
    return _damaged(readable, f"{shard} {rest}{last}: make it again", notes, skip), False


def _is_empty_after(shard: Path, offset: int) -> bool:
    """Whether there are only zeros from there on."""
    with shard.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            if chunk.strip(b"\0"):
                return False
    return True


def _damaged(whole: list[tuple[str, Member]], message: str, notes: list[str], skip: bool) -> list[tuple[str, Member]]:
    """The members before the damage, if it is to be skipped.

    Raises:
        ValueError: else.
    """
    if not skip:
        raise with_parameters(ValueError(f"{message}, or leave the rest out by skip_damaged"), "skip_damaged")
    notes.append(f"{message.partition(':')[0]}: the rest was left out ({len(whole)} files before it are used)")
    return whole


def _label(shard: Path, key: str, files: dict[str, Member]) -> str | int:
    member = files.get("cls") or files.get("json")
    if member is None or member.size > LARGEST_LABEL:
        raise ValueError(f"{shard}: {key} has no label: add {key}.cls, or {key}.json with `label`")
    text = _read(shard, member).decode("utf-8", "replace").strip()
    if "cls" not in files:
        text = _label_in(text, f"{shard}: {key}.json")
    if not text:
        raise ValueError(f"{shard}: the label of {key} is empty")
    return int(text) if text.isdecimal() and text.isascii() else text


def _label_in(text: str, where: str) -> str:
    """The label in the content of a json file, as text."""
    try:
        values = json.loads(text)
        label = values["label"] if "label" in values else values["cls"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{where} contains neither `label` nor `cls`") from None
    if not isinstance(label, int | str):
        raise ValueError(f"{where}: the label {json.dumps(label)} is neither a whole number nor a text: correct it")
    return str(label).strip()


def labels_of(root: Path, samples: Sequence[TarSample]) -> tuple[Int64[np.ndarray, "N"], tuple[str, ...]]:
    """The class index of every sample, and the names of the classes: the distinct labels, sorted.

    Unicode spellings of one name (NFC and NFD) are one class.

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
    labels = one_spelling([sample.label for sample in samples])
    distinct = sorted(set(labels), key=lambda label: (label if numbers else 0, str(label)))
    place = {label: index for index, label in enumerate(distinct)}
    return np.array([place[label] for label in labels], dtype=np.int64), tuple(map(str, distinct))
