"""Digests by which a file knows what it was made from, and that it is whole."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

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


def of_weights(tensors: Mapping[str, "Tensor"], about: str) -> str:
    """The digest of weights: names, types, shapes and values, and their header."""
    import torch

    parts = (
        (f"{name} {tensor.dtype} {tuple(tensor.shape)}", tensor.reshape(-1).view(torch.uint8).numpy())
        for name, tensor in sorted(tensors.items())
    )
    return of_arrays(parts, about)


def signed(page: str, made_from: Mapping[str, Any]) -> str:
    """An SVG or HTML file with a comment at its end: what it was made from, and the digest of all that precedes it."""
    escaped = json.dumps(made_from).replace("-", "\\u002d").replace(">", "\\u003e")  # names must not end the comment
    text = f"{page.rstrip()}\n<!-- made from {escaped}"
    return f"{text} blake2b {of_bytes(text.encode())} -->\n"
