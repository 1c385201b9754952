"""Image files in folders: folder:PATH with PATH/{train,val,test}/class/… or PATH/class/…, resident or streaming."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from offramp.data._cache import Allocate, cache_root, cached
from offramp.data._decode import SAMPLE, Encoded, became_rgb, decode_into, each_image, guess_size
from offramp.data._shards import SPLIT_WORDS, usual_augmentation
from offramp.data.load import NORMALISE
from offramp.data.parquet import located
from offramp.data.splits import ArraySource, Found, Indices, Request, consecutive
from offramp.images import ENDINGS, BadImage, Fit, centre, decode, default_fit, kind_of, open_image


class Listing(NamedTuple):
    """The image files of a folder, part by part and class by class, in the order of their names."""

    root: Path
    files: list[Path]
    labels: Int64[np.ndarray, "N"]
    classes: tuple[str, ...]
    counts: dict[str, int]  # of images in each part
    notes: tuple[str, ...]


def build(request: Request, *, resize: int | None = None, check: Literal["full", "headers"] = "full") -> Found:
    """Images in one folder per class, in train/, val/ and test/ or undivided (then a seeded 80/10/10 split).

    Args:
        request: from `load`; `image_size` is the side of the square that images get.
        resize: shorter side before the centre crop; default 256/224 of the size, the size itself up to 64.
        check: with streaming: `full` decodes every image once, before the first training on these files, so that
            no bad one stops a run; `headers` only looks at their beginnings.

    Raises:
        FileNotFoundError: if the folder is missing or empty.
        ValueError: if its layout or an image is bad, naming the file.
    """
    if not request.path:
        raise ValueError("folder needs a path: write folder:PATH")
    listing = scan(located(request))
    mean, std = NORMALISE["imagenet"]
    source: ArraySource | FolderSource
    if request.streaming:
        source = FolderSource(
            request.name, listing.classes, listing.labels, listing.files, _fit(listing, request, resize)
        )
        notes = _checked(request, listing, full=check == "full")
    else:
        source, notes = _resident(request, listing, resize)
    parts = consecutive(listing.counts)
    return Found(source, parts, mean, std, usual_augmentation(source.shape[1]), (*listing.notes, *notes))


def scan(root: Path) -> Listing:
    """Find the images; see `build`."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: name one that holds train/ and test/, or one folder per class")
    homes = _parts(root)
    names = sorted({child.name for home in homes.values() for child in _folders(home)})
    if not names:
        raise FileNotFoundError(_why_none(root))
    files: list[Path] = []
    labels: list[int] = []
    counts: dict[str, int] = {}
    strangers: list[Path] = []
    for part, home in homes.items():
        before = len(files)
        strangers += _strangers(home)
        for label, name in enumerate(names):
            found = list(_files(home / name)) if (home / name).is_dir() else []
            pictures = [file for file in found if file.suffix.lower() in ENDINGS]
            strangers += [file for file in found if file.suffix.lower() not in ENDINGS]
            files += pictures
            labels += [label] * len(pictures)
        counts[part] = len(files) - before
        _refuse_deep(home, files[before:])
        if not counts[part]:
            raise ValueError(
                f"{home} holds no images ({', '.join(sorted(ENDINGS))}): it should have one folder per class"
            )
    filled = set(labels)
    empty = [name for label, name in enumerate(names) if label not in filled]
    if empty:
        more = f" (and {len(empty) - 3} more)" if len(empty) > 3 else ""
        raise ValueError(
            f"{root} has class folders without images, {', '.join(f'{name}/' for name in empty[:3])}{more}: fill or "
            "remove them"
        )
    return Listing(root, files, np.array(labels, dtype=np.int64), tuple(names), counts, _left_out(root, strangers))


def _refuse_deep(home: Path, files: list[Path]) -> None:
    """Images may lie in folders within a class folder, but not all of them: then those are no class folders."""
    if files and not any(file.parent.parent == home for file in files):
        raise ValueError(
            f"{files[0]} lies too deep: no folder in {home} holds images itself; name the folder whose folders are the "
            f"classes, such as {files[0].parent.parent}"
        )


def _why_none(root: Path) -> str:
    """Why there are no class folders."""
    pictures = sorted(file for file in root.iterdir() if file.suffix.lower() in ENDINGS)
    if pictures:
        return (
            f"{root} holds images but no class folders ({pictures[0].name}, …): name the folder that has one folder of "
            "images per class"
        )
    return f"{root} is empty: it should hold train/ and test/, or one folder of images per class"


def _parts(root: Path) -> dict[str, Path]:
    """train, val and test folders by our names for them, or the folder itself as "all"."""
    found: dict[str, Path] = {}
    others = []
    for child in _folders(root):
        part = SPLIT_WORDS.get(child.name.lower())
        if part is None:
            others.append(child.name)
        elif part in found:
            raise ValueError(f"{root} has both {found[part].name}/ and {child.name}/: keep one")
        else:
            found[part] = child
    if "train" not in found:
        return {"all": root}
    if others:
        raise ValueError(f"{root} has {others[0]}/ beside train/: only train/, val/ and test/ belong there")
    if len(found) == 1:
        return {"all": found["train"]}
    return {part: found[part] for part in ("train", "val", "test") if part in found}


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(root: Path) -> Iterator[Path]:
    """All files below, hidden ones left out; links are followed, but no folder is entered twice."""
    seen: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and real not in seen)
        if real not in seen:
            yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))
        seen.add(real)


def _strangers(home: Path) -> list[Path]:
    """Files beside the class folders; an image among them is an error, since its class cannot be told."""
    files = sorted(child for child in home.iterdir() if child.is_file() and not child.name.startswith("."))
    for file in files:
        if file.suffix.lower() in ENDINGS:
            raise ValueError(f"{file} lies in no class folder: move it into {home}/CLASS/")
    return files


def _left_out(root: Path, files: list[Path]) -> tuple[str, ...]:
    if not files:
        return ()
    if len(files) == 1:
        return (f"{root}: {files[0].name} is no image by its name and was left out",)
    return (f"{root}: {len(files)} files are no images by their names and were left out ({files[0].name}, …)",)


def _fit(listing: Listing, request: Request, resize: int | None) -> Fit:
    every = max(1, len(listing.files) // SAMPLE)
    return default_fit(request.image_size or guess_size(listing.files[::every]), resize)


def _encoded(listing: Listing) -> Iterator[Encoded]:
    return (Encoded(file, str(file)) for file in listing.files)


def _resident(request: Request, listing: Listing, resize: int | None) -> tuple[ArraySource, tuple[str, ...]]:
    """Everything decoded, or found decoded in the cache."""

    def fill(allocate: Allocate) -> tuple[np.ndarray, dict[str, Any]]:
        fit = _fit(listing, request, resize)
        pixels = allocate(len(listing.files), 3, fit.size, fit.size)
        kinds = decode_into(pixels, _encoded(listing), fit, name=request.name, progress=request.progress)
        return listing.labels, {"kinds": kinds}

    files = [(str(file.relative_to(listing.root)), file) for file in listing.files]
    settings = {"form": "folder", "size": request.image_size, "resize": resize, "pillow": PIL.__version__}
    found = cached(request.name, files, settings, fill, request.cache_dir)
    notes = (*became_rgb(request.name, found.facts["kinds"]), *found.facts.get("notes", []))
    return ArraySource(request.name, listing.classes, listing.labels, found.pixels, files=listing.files), notes


def _checked(request: Request, listing: Listing, *, full: bool) -> tuple[str, ...]:
    """Look at every image once, and remember it in the cache by names, sizes and times of the files."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in listing.files]
    key = hashlib.blake2b(json.dumps([full, stats]).encode(), digest_size=16).hexdigest()
    record = cache_root(request.cache_dir) / f"checked-{key}.json"
    try:
        kinds: dict[str, int] = {str(kind): int(n) for kind, n in json.loads(record.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        task = _look_through if full else _look_at
        title = f"checking {request.name}"
        count = len(listing.files)
        kinds = each_image(_encoded(listing), count, task, name=request.name, title=title, progress=request.progress)
        _remember(record, kinds)
    return became_rgb(request.name, kinds)


def _remember(record: Path, kinds: dict[str, int]) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        draft = record.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(kinds))
        draft.replace(record)
    except OSError:  # it is looked at again next time
        return


def _look_at(place: int, data: bytes | Path) -> str | None:
    with open_image(data) as image:
        return kind_of(image.mode)


def _look_through(place: int, data: bytes | Path) -> str | None:
    return decode(data, lambda image: image.resize((1, 1), Image.Resampling.NEAREST))[1]


@dataclass(frozen=True)
class FolderSource:
    """Images that stay files, decoded anew for every batch: bounded memory, whatever the number of images."""

    name: str
    classes: tuple[str, ...]
    labels: Int64[np.ndarray, "N"]
    files: list[Path]
    fit: Fit
    streaming: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.fit.size, self.fit.size

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Indices) -> UInt8[np.ndarray, "B 3 H W"]:
        """The images of these rows, resized and cropped to the centre.

        Raises:
            ValueError: if a file was changed since it was checked and cannot be decoded, with its name.
        """
        return self._decoded(indices, lambda image, place: centre(image, self.fit))

    def crops(self, indices: Indices, draws: Float[Any, "B 10 4"]) -> UInt8[np.ndarray, "B 3 H W"]:
        """A random part of each original, resized; `draws` as `offramp.data.augment.boxes` takes them.

        Raises:
            ValueError: as `batch`.
        """
        from offramp.data.augment import boxes

        def cut(image: Image.Image, place: int) -> Image.Image:
            top, left, height, width = boxes(draws[place : place + 1], image.height, image.width)[0].tolist()
            box = (left, top, left + width, top + height)
            return image.resize((self.fit.size, self.fit.size), Image.Resampling.BILINEAR, box=box)

        return self._decoded(indices, cut)

    def _decoded(self, indices: Indices, cut: Callable[..., Image.Image]) -> np.ndarray:
        """The images of these rows, cut by `cut(image, place in the batch)`."""
        out = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for place, row in enumerate(indices):
            try:
                out[place] = decode(self.files[row], partial(cut, place=place))[0]
            except BadImage as error:
                raise ValueError(f"{self.files[row]} cannot be decoded ({error}): mend or remove it") from error
        return out
