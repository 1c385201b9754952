"""A look at every encoded image before the first training on it, so that no bad one stops a run; done once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from offramp.data._cache import VERSION, cache_root, digest_of
from offramp.data._decode import SAMPLE, Encoded, Resizing, each_image, guess_size
from offramp.data._duplicates import groups_of
from offramp.data._photographs import facts_of
from offramp.data.encoded import Encodings
from offramp.data.splits import Request
from offramp.files import replacing
from offramp.images import Fit, decode, kind_of, open_image

Check = Literal["full", "headers"]
"""`full` decodes every image once, `headers` looks at their beginnings only."""


def fit_of(images: Encodings, request: Request, shape: Resizing) -> Fit:
    """How images are resized; their size, if it is not given, follows from a sample of them."""
    rows = range(0, len(images), max(1, len(images) // SAMPLE))
    return shape.fit(request.image_size or guess_size([images.read(row) for row in rows]))


def checked(request: Request, images: Encodings, files: Sequence[Path], check: Check, kind: str) -> dict[str, Any]:
    """Look at every image once; the facts are kept in the cache by names, sizes and times of the files.

    Returns:
        Facts as `offramp.data._photographs.photographs` takes them.

    Raises:
        ValueError: naming the images that cannot be decoded, unless they are to be skipped.
    """
    skip = request.skip_damaged
    record = cache_root(request.cache_dir) / f"checked-{stamp(files, kind, check, skip)}.json"
    facts = remembered(record)
    if facts is None:
        digests: dict[int, str] = {}

        def look(index: int, data: bytes | Path) -> tuple[str, ...]:
            if check == "headers":
                return look_at(data)
            digests[index] = digest_of(data) if isinstance(data, Path) else _digest(data)
            return look_through(data)

        title, count = f"checking {request.name}", len(images)
        looked = each_image(
            encodings(images), count, look, name=request.name, title=title, progress=request.progress, skip=skip
        )
        duplicates = groups_of(digests.get(row, str(row)).encode() for row in range(count)) if digests else []
        facts = {**facts_of(looked), "duplicates": duplicates}
        store_facts(record, facts)
    return facts


def stamp(files: Sequence[Path], *settings: Any) -> str:
    """A digest of the names, sizes and times of files, and of how they are used."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps([VERSION, *settings, stats]).encode(), digest_size=16).hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def encodings(images: Encodings) -> Iterator[Encoded]:
    """All images, in order."""
    return (Encoded(images.read(row), images.where(row)) for row in range(len(images)))


def remembered(record: Path) -> dict[str, Any] | None:
    """The facts of an earlier check, or None if there are none, or they are damaged."""
    try:
        facts = json.loads(record.read_text())
        remarks = {str(kind): int(count) for kind, count in facts["remarks"].items()}
        damaged = [[int(row), str(text)] for row, text in facts["damaged"]]
        groups = [list(map(int, group)) for group in facts["duplicates"]]
        return {"remarks": remarks, "damaged": damaged, "duplicates": groups}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def store_facts(record: Path, facts: dict[str, Any]) -> None:
    """Keep the facts of a check, if the disk has space for them."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record, shared=True) as draft:
            draft.write_text(json.dumps(facts))
    except OSError:  # the images are checked again next time
        return


def look_at(data: bytes | Path) -> tuple[str, ...]:
    """The kind of an image, if it becomes RGB; from its header."""
    with open_image(data) as image:
        kind = kind_of(image.mode)
    return () if kind is None else (kind,)


def look_through(data: bytes | Path) -> tuple[str, ...]:
    """The remarks of `offramp.images.decode` about an image."""
    return decode(data, lambda image: image.resize((1, 1), Image.Resampling.NEAREST))[1]
