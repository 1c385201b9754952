"""Finds the image files of a folder, for training and for prediction alike. Runs without torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from offramp.images import ENDINGS

UNREAD = {
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".avif": "AVIF",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".svg": "SVG",
    ".psd": "PSD",
    ".dng": "DNG",
    ".cr2": "CR2",
    ".nef": "NEF",
    ".arw": "ARW",
}
"""Image formats that are not read, by the endings of their files."""


class Walk(NamedTuple):
    """What a folder holds, hidden files and folders left out."""

    images: list[Path]
    others: list[Path]  # files that are no images by their names
    broken: list[Path]  # links that lead nowhere
    repeated: list[Path]  # folders that were not entered: links to a folder that contains them or was read already
    special: list[Path]  # pipes, sockets and devices: reading one may block for ever


def walk(root: Path) -> Walk:
    """Lists all files below a folder, each folder's own first, by name. Links are followed, no folder is read twice."""
    result = Walk([], [], [], [], [])
    seen: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        here, real = Path(place), os.path.realpath(place)
        seen.add(real)
        enter = []
        for name in sorted(folders):
            target = os.path.realpath(here / name)
            if name.startswith("."):
                continue
            if target in seen or contains(target, real):
                result.repeated.append(here / name)
            else:
                enter.append(name)
                seen.add(target)
        folders[:] = enter
        for name in sorted(files):
            if not name.startswith("."):
                _sort_in(result, here / name)
    return result


def contains(folder: str, path: str) -> bool:
    """Whether a folder is the path, or holds it; both are real paths."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def is_broken(file: Path) -> bool:
    """Whether a path is a link that leads nowhere."""
    return file.is_symlink() and not file.exists()


def _sort_in(result: Walk, file: Path) -> None:
    if is_broken(file):
        result.broken.append(file)
    elif not file.is_file():
        result.special.append(file)
    elif file.suffix.lower() in ENDINGS:
        result.images.append(file)
    else:
        result.others.append(file)


def left_out(root: Path, walks: Sequence[Walk]) -> tuple[str, ...]:
    """One line for each kind of entry that is not read."""
    others = [file for walked in walks for file in walked.others]
    unread = [file for file in others if file.suffix.lower() in UNREAD]
    formats = ", ".join(sorted({UNREAD[file.suffix.lower()] for file in unread}))
    reasons = [
        (
            [file for file in others if file not in {*unread}],
            "{} was left out: its name does not end like that of an image",
            "files were left out: their names do not end like those of images",
        ),
        (
            unread,
            f"{{}} was left out: {formats} is not read, convert it to JPEG or PNG",
            f"images were left out: {formats} is not read, convert them to JPEG or PNG",
        ),
        (
            [file for walked in walks for file in walked.broken],
            "the link {} leads nowhere and was left out",
            "links lead nowhere and were left out",
        ),
        (
            [file for walked in walks for file in walked.repeated],
            "{} links to a folder that contains it or was read already, and was left out",
            "links to folders that contain them or were read already were left out",
        ),
        (
            [file for walked in walks for file in walked.special],
            "{} is a pipe, socket or device and was left out",
            "pipes, sockets and devices were left out",
        ),
    ]
    return tuple(
        f"{root}: {one.format(files[0].name) if len(files) == 1 else f'{len(files)} {many} ({files[0].name}, …)'}"
        for files, one, many in reasons
        if files
    )
