"""Images that a data set holds more than once, found by the digests of their pixels."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from offramp.data.splits import Indices


def pixel_digests(pixels: UInt8[np.ndarray, "N C H W"]) -> Iterable[bytes]:
    """A digest of every image."""
    return (hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in pixels)


def groups_of(digests: Iterable[bytes]) -> list[list[int]]:
    """The rows of equal images, one list for each image that occurs more than once."""
    rows: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        rows.setdefault(digest, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def duplicate_notes(
    name: str, groups: Sequence[Sequence[int]], labels: Int64[np.ndarray, "N"], splits: Mapping[str, Indices]
) -> tuple[str, ...]:
    """Lines about images that are in train and in another split, or in several classes.

    Args:
        name: Name of the data set.
        groups: Rows of equal images, see `groups_of`.
        labels: Class index of every row.
        splits: Rows of every split.
    """
    if not groups:
        return ()
    training = set(splits["train"].tolist())
    known = {row for group in groups if not training.isdisjoint(group) for row in group}
    counts = {split: sum(row in known for row in rows.tolist()) for split, rows in splits.items() if split != "train"}
    shared = [f"{count} of {len(splits[split])} {split}" for split, count in counts.items() if count]
    notes = []
    if shared:
        notes.append(
            f"{name}: {' and '.join(shared)} images are in train too: what is measured on them is too good, remove the "
            "duplicates"
        )
    mixed = sum(len(set(labels[list(group)].tolist())) > 1 for group in groups)
    if mixed:
        many = f"{mixed} images are in more than one class each" if mixed > 1 else "1 image is in more than one class"
        notes.append(f"{name}: {many}: correct their labels or remove the duplicates")
    return tuple(notes)
