"""The recorded split of a run: written when training begins, checked by whatever reads the run's data later."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offramp import digests
from offramp.data import split_record
from offramp.data.split_record import Keys, SplitRecord, Start
from offramp.lookup import with_parameters
from offramp.train.run_dir import SPLIT

if TYPE_CHECKING:
    from offramp.data.splits import DataSet

NEW_IMAGES = (
    "images of val, cal and test must be new to these weights, or accuracies and certificates say nothing about other "
    "images"
)


class Origin(NamedTuple):
    """Where the first weights came from, the images they were trained on by kind of key, and notes for the user."""

    start: Start
    before: dict[str, Keys]
    notes: tuple[str, ...]


def read(folder: Path) -> SplitRecord | None:
    """The recorded split of a run; None for runs that were trained before splits were recorded. Errors: `load`."""
    return split_record.load(folder / SPLIT)


def begin(folder: Path, data: "DataSet", origin: Origin, begun: bool) -> tuple[str, ...]:
    """Record the split of a new run; check it for a resumed one. Returns notes for the user.

    Args:
        folder: of the run, held for writing.
        begun: whether training has left anything there yet.
    Raises:
        ValueError: if the images are not those that the run began with, with what changed.
    """
    if not begun:
        split_record.save(split_record.record_of(data, origin.start, origin.before), folder / SPLIT)
        return ()
    if read(folder) is None:
        return (f"{folder} has no record of its split ({SPLIT}): whether its data have changed cannot be checked",)
    check(folder, data)
    return ()


def check(folder: Path, data: "DataSet") -> None:
    """Refuse data that have changed since the run in the folder was begun, if it has a record of its split.

    Raises:
        ValueError: with what changed.
    """
    record = read(folder)
    difference = "" if record is None else split_record.changed(data, record, str(folder))
    if difference:
        raise with_parameters(
            ValueError(
                f"{data.name} changed after {folder} was begun: {difference}; restore the data, or choose another out"
            ),
            "out",
        )


def summary(folder: Path) -> dict[str, Any] | None:
    """The recorded split in a few words: how images are identified, how many each part has, and the file's digest."""
    record = read(folder)
    if record is None:
        return None
    sizes = {name: len(keys) for name, keys in record.splits.items()}
    return {"by": record.kind, "images": sizes, "start": record.start, "digest": digests.of_file(folder / SPLIT)}


def restore(data: "DataSet", folder: Path, use_new: bool) -> tuple["DataSet", tuple[str, ...]]:
    """The data set with every image in the split where the run had it, and notes about what is new or gone.

    Args:
        folder: of the run.
        use_new: see `offramp.data.split_record.restored`.
    Returns:
        Without a record the data set as it is divided now, with a note that says so.
    Raises:
        ValueError: if the record is damaged, or the data are not those of the run.
    """
    record = read(folder)
    if record is None:
        return data, (f"{folder} has no record of its split ({SPLIT}): its test images may have been trained on",)
    restored = split_record.restored(data, record, str(folder), use_new)
    return restored, restored.notes[len(data.notes) :]


def keep_apart(data: "DataSet", weights: Path | None) -> tuple["DataSet", Origin]:
    """The data set without val, cal and test images that the first weights were trained on.

    Those of val and cal are trained on instead; those of test are left out.

    Args:
        weights: the file that training starts from; None without one.
    Raises:
        ValueError: if what is left of a split lacks a class.
    """
    if weights is None:
        return data, Origin("new", {}, ())
    run = _run_of(weights)
    record = None if run is None else read(run)
    source = data.splits["train"].source
    trained = None if record is None else record.trained(record.kind)
    if record is None or trained is None or record.kind not in split_record.kinds(source):
        why = "do not say what they were trained on" if record is None else "were trained on images of another kind"
        return data, Origin("elsewhere", {}, (f"weights={weights} {why}: {NEW_IMAGES}",))
    return _without(data, weights, record, trained)


def _run_of(weights: Path) -> Path | None:
    """The folder of the run that weights belong to, or of one of its checkpoints, links followed."""
    place = weights.resolve()
    if place.name in ("last.safetensors", "best.safetensors"):
        return place.parent
    checkpoints = place.parent.parent
    return checkpoints.parent if checkpoints.name == "checkpoints" and place.name == "weights.safetensors" else None


def _without(data: "DataSet", weights: Path, record: SplitRecord, trained: Keys) -> tuple["DataSet", Origin]:
    """See `keep_apart`; images that are in the same split of both runs stay there."""
    splits, moved, counts = dict(data.splits), [], []
    for name in [name for name in ("val", "cal", "test") if name in splits]:
        split = splits[name]
        known = split_record.keys(split.source, split.indices, record.kind)
        chosen = record.splits.get("val", trained[:0]) if name == "cal" else trained[:0]
        seen = np.isin(known, np.concatenate([trained, chosen])) & ~np.isin(known, record.splits.get(name, trained[:0]))
        if seen.any():
            counts.append(f"{int(seen.sum()):,} of {len(split):,} {name}")
            moved += [split.indices[seen]] if name != "test" else []
            _check_classes(split.labels[~seen], data, name, f"weights={weights} was trained on {counts[-1]} images")
            splits[name] = dataclasses.replace(split, indices=split.indices[~seen])
    if moved:
        rows = np.sort(np.concatenate([splits["train"].indices, *moved]))
        splits["train"] = dataclasses.replace(splits["train"], indices=rows)
    notes = (f"weights={weights} was trained on {', '.join(counts)} images: they are kept out",) if counts else ()
    reduced = dataclasses.replace(data, splits=splits) if counts else data
    return reduced, Origin("run", {record.kind: np.unique(trained)}, notes)


def _check_classes(labels: np.ndarray, data: "DataSet", name: str, why: str) -> None:
    lacking = sorted(set(range(len(data.classes))) - set(labels.tolist()))
    if lacking:
        raise with_parameters(
            ValueError(
                f"{why}, and the rest lacks class {lacking[0]} ({data.classes[lacking[0]]}): split the data as that "
                "run did (the same holdout and split_seed), or take other data"
            ),
            "holdout",
            "split_seed",
            "weights",
        )


def caution(folder: Path) -> str:
    """What a certificate for this run rests on, in a sentence; nothing if its record says that it is so.

    Raises:
        ValueError: if images of cal were in val too, where they chose epochs or loss weights.
    """
    record = read(folder)
    if record is not None and np.isin(record.splits.get("cal", ()), record.splits.get("val", ())).any():
        raise with_parameters(
            ValueError(
                f"{folder} was trained with data.shared_holdout=true: its cal images are its val images too, which "
                "choose epochs and loss weights, so that nothing can be certified on them; set max_drop instead"
            ),
            "data.shared_holdout",
            "max_drop",
        )
    if record is None:
        return f"{folder} has no record of its split: {NEW_IMAGES}"
    if record.start == "elsewhere":
        return f"{folder} began with weights that do not say what they were trained on: {NEW_IMAGES}"
    return ""
