"""Labels of tables as class indices: numbers, strings, categories, booleans, and the class names of the Hub."""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from offramp.data._tables import Shard


class ShardLabels(NamedTuple):
    """The class index of every row of all shards, the names of the classes, and notes for the user."""

    indices: Int64[np.ndarray, "N"]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def label_kind(kind: Any) -> str | None:
    """What an Arrow type is as a label: `numbers`, `strings`, `booleans` or None; pandas categories: their values."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return label_kind(kind.value_type)
    if types.is_integer(kind):
        return "numbers"
    if types.is_boolean(kind):
        return "booleans"
    return "strings" if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) else None


def class_names(shard: Shard, column: str) -> tuple[str, ...] | None:
    """The class names that the Hub writes into its shards (ClassLabel), or None.

    Raises:
        ValueError: naming the shard, if two classes have one name.
    """
    try:
        features = json.loads((shard.schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    known = tuple(str(name) for name in names)
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise ValueError(f"{shard.where} gives two classes in {column!r} the name {twice!r}: give them different names")
    return known


def read_labels(shards: Sequence[Shard], column: str, count: int | None = None) -> ShardLabels:
    """Reads the labels of all shards.

    Numbers are indices into the class names of the Hub, each shard's into its own; without such names, numbers,
    strings and booleans alike are the names: the distinct ones, sorted, are the classes.

    Args:
        shards: In order; all labels must be of one kind.
        column: Name of the column.
        count: Number of classes, if it is known.

    Raises:
        ValueError: naming file and row, if a label is missing, out of range, or of another kind or class.
    """
    _check_kinds(shards, column)
    values = [_values(shard, column) for shard in shards]
    named = [class_names(shard, column) for shard in shards]
    first = next((place for place, names in enumerate(named) if names), None)
    classes = named[first] if first is not None else None
    if count is not None and classes is not None and first is not None and len(classes) != count:
        raise ValueError(f"{shards[first].where} names {len(classes)} classes in {column!r}, but there are {count}")
    if classes is None and count is not None:
        classes = tuple(map(str, range(count)))
    if classes is None or any(isinstance(value, str) for each in values for value in each):
        return _distinct(shards, values, column)
    notes: list[str] = []
    indices: list[np.ndarray] = []
    for shard, labels, names in zip(shards, values, named, strict=True):
        _check_range(shard, column, labels, len(names or classes))
        numbers = np.array(labels, dtype=np.int64)
        if names and names != classes:
            numbers = _renumbered(shard, shards[first or 0], names, classes)[numbers]
            notes.append(
                f"{shard.where}: its class names are in another order than in {shards[first or 0].where}; "
                "labels are matched by name"
            )
        indices.append(numbers)
    return ShardLabels(np.concatenate(indices), classes, tuple(notes))


def _check_kinds(shards: Sequence[Shard], column: str) -> None:
    kinds = [label_kind(shard.schema.field(column).type) for shard in shards]
    for shard, kind in zip(shards, kinds, strict=True):
        if kind != kinds[0] and shard.rows:
            raise ValueError(
                f"{shard.where}: its labels ({column}) are {kind}, but those of {shards[0].where} are {kinds[0]}: "
                "store them alike"
            )


def _values(shard: Shard, column: str) -> list[Any]:
    values = [label for batch in shard.batches(column) for label in batch.to_pylist()]
    if None in values:
        raise ValueError(f"{shard.where}, row {values.index(None)}: the label ({column}) is missing; fill it in")
    return values


def _check_range(shard: Shard, column: str, values: Sequence[Any], count: int | None) -> None:
    for row, label in enumerate(values):
        if not isinstance(label, str) and (label < 0 or (count is not None and label >= count)):
            upper = "0 and more" if count is None else f"0..{count - 1}"
            raise ValueError(f"{shard.where}, row {row}: label {label} is out of range ({upper}); correct it")


def _distinct(shards: Sequence[Shard], values: Sequence[Sequence[Any]], column: str) -> ShardLabels:
    """The distinct labels are the classes."""
    for shard, labels in zip(shards, values, strict=True):
        _check_range(shard, column, labels, None)
    flat = [value for labels in values for value in labels]
    known = one_spelling(flat)
    distinct = sorted(set(known))
    place = {value: index for index, value in enumerate(distinct)}
    notes: tuple[str, ...] = ()
    if len(set(flat)) > len(distinct):
        notes = (f"{shards[0].where}: labels in two Unicode forms (NFC, NFD) are taken as one class",)
    return ShardLabels(np.array([place[value] for value in known], dtype=np.int64), tuple(map(str, distinct)), notes)


def one_spelling(labels: Sequence[Any]) -> list[Any]:
    """The labels, with the Unicode spellings of one name (NFC and NFD) replaced by the one that comes first."""
    spelled: dict[Any, Any] = {}
    return [
        spelled.setdefault(unicodedata.normalize("NFC", label), label) if isinstance(label, str) else label
        for label in labels
    ]


def _renumbered(shard: Shard, other: Shard, names: Sequence[str], classes: Sequence[str]) -> Int64[np.ndarray, "_"]:
    """The class index for every number of a shard whose names differ from those of another shard."""
    place = {unicodedata.normalize("NFC", name): index for index, name in enumerate(classes)}
    names = [unicodedata.normalize("NFC", name) for name in names]
    unknown = [name for name in names if name not in place]
    if unknown:
        raise ValueError(
            f"{shard.where} names the class {unknown[0]!r} in its labels, which {other.where} does not have: give all "
            "shards the same classes"
        )
    return np.array([place[name] for name in names], dtype=np.int64)
