"""From the labels of a source to the rows of train, val, cal and test, and a check that they can be trained on."""

import re

import numpy as np

from offramp.data.splits import Indices, RawDataSet, Source, halves, subset, take
from offramp.lookup import with_parameters


def cut_splits(
    name: str, data: RawDataSet, holdout: int | float, per_class: int | None, inclusive: bool, seed: int
) -> dict[str, Indices]:
    """Rows of train, test and, unless nothing is held out, val and cal; arguments as in `offramp.data.load`.

    Raises:
        ValueError: if a split is empty, train or test is missing, or a class has too few images.
    """
    labels, parts = data.source.labels, dict(data.parts)
    for part, rows in parts.items():
        if not len(rows):
            raise ValueError(f"{name}: the split {part!r} has no samples")
    try:
        if "all" in parts:
            parts["test"], rest = take(labels, parts["all"], 0.1, 1, seed)
            parts["train"] = rest
            share = holdout * len(parts.pop("all")) / len(rest)
        else:
            share = holdout
            if "test" not in parts and "val" in parts:
                parts["test"] = parts.pop("val")
        if "train" not in parts or "test" not in parts:
            raise ValueError(f"there is only {' and '.join(parts)}, but train and test are needed")
        _check_classes(data.source, {"train": parts["train"], "test": parts["test"]})
        return _held_out(labels, parts, share, per_class, inclusive, seed)
    except ValueError as error:
        message = f"{name}: {_with_class_names(str(error), data.source.classes)}"
        raise with_parameters(ValueError(message), "per_class", "holdout", "data.per_class_includes_holdout") from error


def _held_out(
    labels: Indices, parts: dict[str, Indices], share: int | float, per_class: int | None, inclusive: bool, seed: int
) -> dict[str, Indices]:
    """Hold val and cal out of train (or halve a val that came with the data), then keep `per_class` of train."""
    rows = {"train": parts["train"], "test": parts["test"]}
    held_per_class = 0
    if "val" in parts:
        rows["val"], rows["cal"] = halves(labels, parts["val"], seed)
    elif share > 0:
        held, rows["train"] = take(labels, parts["train"], share, 2, seed)
        rows["val"], rows["cal"] = halves(labels, held, seed)
        held_per_class = int(np.bincount(labels[held]).max())
    if per_class is not None:
        left = per_class - held_per_class if inclusive else per_class
        if left < 1:
            raise ValueError(
                f"per_class={per_class} leaves nothing to train on, since it includes the {held_per_class} images "
                "per class that are held out: raise it, lower holdout, or set data.per_class_includes_holdout=false"
            )
        rows["train"] = subset(labels, rows["train"], left, seed)
    return rows


def _with_class_names(text: str, classes: tuple[str, ...]) -> str:
    """Say `class 3 (cat)` where the splitting functions, which know numbers only, said `class 3`."""
    return re.sub(r"(?<!-)\bclass (\d+)\b", lambda match: f"class {match[1]} ({classes[int(match[1])]})", text)


def _check_classes(source: Source, rows: dict[str, Indices]) -> None:
    """Refuse a class that some of these splits have and others have not."""
    present = {split: set(np.unique(source.labels[ids]).tolist()) for split, ids in rows.items()}
    for label in sorted(set().union(*present.values())):
        holders = [split for split, labels in present.items() if label in labels]
        if len(holders) < len(rows):
            lacking = [split for split in rows if split not in holders]
            raise ValueError(
                f"class {label} is in {' and '.join(holders)} but not in {' and '.join(lacking)}: every class needs "
                "images in every split"
            )


def check_splits(name: str, source: Source, rows: dict[str, Indices]) -> None:
    """Check that every split has images of every class, and that there are two classes or more.

    Raises:
        ValueError: naming the class or the split.
    """
    if len(source.classes) < 2:
        raise ValueError(f"{name} has one class only ({', '.join(source.classes)}): classification needs two")
    try:
        _check_classes(source, rows)
    except ValueError as error:
        raise ValueError(f"{name}: {_with_class_names(str(error), source.classes)}") from error
