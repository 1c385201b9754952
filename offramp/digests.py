"""Digests by which a file knows what it was made from, and that it is whole."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

SIZE = 16


def of_file(path: Path) -> str:
    """The BLAKE2b digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).hexdigest()


def of_bytes(data: bytes) -> str:
    """The BLAKE2b digest of bytes."""
    return hashlib.blake2b(data, digest_size=SIZE).hexdigest()


def of_arrays(arrays: Iterable[tuple[str, np.ndarray]], *texts: str) -> str:
    """The BLAKE2b digest of named arrays (names, types, shapes and values) and of texts that belong to them."""
    digest = hashlib.blake2b(digest_size=SIZE)
    for name, array in arrays:
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    for text in texts:
        digest.update(f"{len(text)};{text}".encode())
    return digest.hexdigest()
