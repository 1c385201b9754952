"""The class folders of an image folder: which splits there are, which classes, and which files belong to them."""

import os
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from offramp.data._tables import SPLIT_WORDS
from offramp.image_files import Walk, contains, is_broken, left_out, walk
from offramp.images import ENDINGS
from offramp.lookup import ParameterError

Layout = Literal["auto", "classes"]


class Listing(NamedTuple):
    """The image files of a folder, split by split and class by class, in the order of their names."""

    root: Path
    files: list[Path]
    labels: Int64[np.ndarray, "N"]
    classes: tuple[str, ...]
    counts: dict[str, int]  # of images in each split
    notes: tuple[str, ...]


class Folders(NamedTuple):
    """The class folders by class and split, in the order of the classes, and the notes on their names."""

    by_class: dict[str, dict[str, list[Path]]]
    notes: tuple[str, ...]


def scan(root: Path, layout: Layout = "auto") -> Listing:
    """Finds the images of PATH/{train,val,test}/CLASS/… or PATH/CLASS/…

    Args:
        root: The folder.
        layout: `classes`: every folder is a class, also one named train; `auto`: train/, val/ and test/ are splits.

    Raises:
        FileNotFoundError: if there is no such folder, or it has no class folders.
        ValueError: if images are in no class folder, or a split or a class has none.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder: name one that holds train/ and test/, or one folder per class"
        )
    splits = {"all": root} if layout == "classes" else _splits(root)
    folders = _class_folders(splits)
    if not folders.by_class:
        raise FileNotFoundError(_why_none(root))
    files: list[Path] = []
    labels: list[int] = []
    counts: dict[str, int] = {}
    walks: list[Walk] = []
    for split, home in splits.items():
        before = len(files)
        walks.append(_beside(home))
        for label, places in enumerate(folders.by_class.values()):
            for place in places.get(split, []):
                walks.append(walk(place))
                files += walks[-1].images
                labels += [label] * len(walks[-1].images)
        counts[split] = len(files) - before
        _refuse_deep(home, files[before:])
        if not counts[split]:
            raise ValueError(
                f"{home} contains no images ({', '.join(sorted(ENDINGS))}): it should have one folder per class"
            )
    _refuse_empty(root, list(folders.by_class), labels)
    notes = (*folders.notes, *left_out(root, walks))
    return Listing(root, files, np.array(labels, dtype=np.int64), tuple(folders.by_class), counts, notes)


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written in hexadecimal."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _class_folders(splits: dict[str, Path]) -> Folders:
    """Class folders by name. Two Unicode spellings of one name (NFC and NFD) are one class."""
    spelled: dict[str, str] = {}
    listing: dict[str, dict[str, list[Path]]] = {}
    notes: dict[str, str] = {}
    for split, home in splits.items():
        for folder in _folders(home):
            name = printable(folder.name)
            known = spelled.setdefault(unicodedata.normalize("NFC", name), name)
            listing.setdefault(known, {}).setdefault(split, []).append(folder)
            if known != name:
                notes[known] = f"{folder}: its name is {known!r} in another Unicode form (NFC, NFD): taken as one class"
            elif name != folder.name:
                notes[known] = f"{home}: the class name {name} is not UTF-8, its bytes are written in hexadecimal"
    return Folders({name: listing[name] for name in sorted(listing)}, tuple(notes.values()))


def _refuse_empty(root: Path, names: list[str], labels: list[int]) -> None:
    filled = set(labels)
    empty = [name for label, name in enumerate(names) if label not in filled]
    if empty:
        more = f" (and {len(empty) - 3} more)" if len(empty) > 3 else ""
        raise ValueError(
            f"{root} has class folders without images, {', '.join(f'{name}/' for name in empty[:3])}{more}: fill or "
            "remove them"
        )


def _refuse_deep(home: Path, files: list[Path]) -> None:
    """Images may be in folders within a class folder, but not all of them: then those are no class folders."""
    if files and not any(file.parent.parent == home for file in files):
        raise ValueError(
            f"{files[0]} is nested too deep: no folder in {home} holds images itself; name the folder "
            f"whose folders are the classes, such as {files[0].parent.parent}"
        )


def _why_none(root: Path) -> str:
    """Why there are no class folders."""
    pictures = sorted(file for file in root.iterdir() if file.suffix.lower() in ENDINGS)
    if pictures:
        return (
            f"{root} contains images but no class folders ({pictures[0].name}, …): name the folder "
            "that has one folder of images per class"
        )
    return f"{root} is empty: it should contain train/ and test/, or one folder of images per class"


def _splits(root: Path) -> dict[str, Path]:
    """The folders of train, val and test by these names, or the folder itself as "all"."""
    folders: dict[str, Path] = {}
    others = []
    for child in _folders(root):
        split = SPLIT_WORDS.get(child.name.lower())
        if split is None:
            others.append(child.name)
        elif split in folders:
            raise ValueError(f"{root} has both {folders[split].name}/ and {child.name}/: keep one")
        else:
            folders[split] = child
    if "train" not in folders:
        return {"all": root}
    if others:
        raise ParameterError(
            f"{root} has {printable(others[0])}/ beside {folders['train'].name}/: only train/, val/ and test/ belong "
            f"there; if {folders['train'].name}/ is a class like {printable(others[0])}/, add data.layout=classes",
            "data.layout",
        )
    if len(folders) == 1:
        return {"all": folders["train"]}
    return {split: folders[split] for split in ("train", "val", "test") if split in folders}


def _folders(root: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and links to a folder that contains them."""
    children = (child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    return sorted(child for child in children if not _is_loop(child))


def _is_loop(folder: Path) -> bool:
    return folder.is_symlink() and contains(os.path.realpath(folder), os.path.realpath(folder.parent))


def _beside(home: Path) -> Walk:
    """What is beside the class folders; an image among them is an error, since its class is unknown."""
    result = Walk([], [], [], [], [])
    for child in sorted(home.iterdir()):
        if child.name.startswith("."):
            continue
        if is_broken(child):
            result.broken.append(child)
        elif child.is_dir():
            result.repeated.extend([child] if _is_loop(child) else [])
        elif child.suffix.lower() in ENDINGS:
            raise ValueError(f"{child} is in no class folder: move it into {home}/CLASS/")
        else:
            (result.others if child.is_file() else result.special).append(child)
    return result
