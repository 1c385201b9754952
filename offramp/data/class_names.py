"""The classes of a data set in the order and spelling that a run or bundle knows them by."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from offramp.data.splits import DataSet


def respelled(data: DataSet, classes: Sequence[str]) -> DataSet:
    """The data set with these classes, if its own are the same names in another Unicode form (NFC, NFD).

    Labels are numbered as `classes` are, since the forms of a name sort differently. Returns the data set as it is if
    its classes are others, or its source cannot be renumbered.
    """
    source = data.splits["train"].source
    forms = [unicodedata.normalize("NFC", name) for name in classes]
    names = [unicodedata.normalize("NFC", name) for name in data.classes]
    if data.classes == tuple(classes) or sorted(names) != sorted(forms) or len({*names}) < len(names):
        return data
    if sorted(data.classes) == sorted(classes) or not dataclasses.is_dataclass(source):
        return data  # the same spelling in another order is not a matter of Unicode
    numbers = np.array([forms.index(name) for name in names], dtype=np.int64)
    labels = numbers[source.labels]
    renamed = dataclasses.replace(source, classes=tuple(classes), labels=labels)
    splits = {name: dataclasses.replace(split, source=renamed) for name, split in data.splits.items()}
    note = f"{data.name}: its class names are in another Unicode form (NFC, NFD): they are taken as the same classes"
    return dataclasses.replace(data, classes=tuple(classes), splits=splits, notes=(*data.notes, note))


def look_alikes(name: str, classes: Sequence[str]) -> tuple[str, ...]:
    """A line for each of the first groups of class names that differ in case or spaces only."""
    groups: dict[str, list[str]] = {}
    for one in classes:
        groups.setdefault(" ".join(one.split()).casefold(), []).append(one)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    why = "are different classes, though their names differ in case or spaces only"
    return tuple(f"{name}: {group} {why}" for group in alike[:3])
