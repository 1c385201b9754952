"""What sources of photographs have in common: when they stream, how they are augmented, which images are left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from offramp.data._decode import Looked, image_notes, listed
from offramp.data.encoded import Decoder, EncodedSource
from offramp.data.load import NORMALISE
from offramp.data.splits import ArraySource, Indices, RawDataSet, Request, consecutive
from offramp.images import Fit
from offramp.lookup import ParameterError

MOST_DECODED = 64 << 30
"""Bytes of decoded images above which a source streams, whether asked to or not."""


def streams(request: Request, count: int, fit: Fit) -> bool:
    """Whether images are decoded again for every batch: on request, or because the decoded ones would be too large."""
    return request.streaming or decoded_size(count, fit) > MOST_DECODED


def decoded_size(count: int, fit: Fit) -> int:
    """Bytes of this many decoded images."""
    return count * 3 * fit.size**2


def check_decoder(decoder: Decoder, streaming: bool) -> None:
    """Refuse a decoder that would have no effect, or is not installed.

    Raises:
        ParameterError: if images are not streamed.
        ImportError: naming the extra that installs it.
    """
    if decoder == "turbo" and not streaming:
        message = "data.decoder=turbo is for images that are decoded in every epoch: set streaming=true too"
        raise ParameterError(message, "data.decoder", "streaming")
    if decoder == "turbo":
        from offramp.data import _turbo

        _turbo.require()


def usual_augmentation(size: int) -> str:
    """For photographs: as on CIFAR up to 64 pixels, as on ImageNet above."""
    return "crop-flip" if size <= 64 else "random-resized-crop"


def facts_of(looked: Looked) -> dict[str, Any]:
    """What a look at all images found, as JSON holds it; see `photographs`."""
    return {"remarks": looked.remarks, "damaged": [list(pair) for pair in looked.damaged]}


def photographs(
    request: Request,
    source: ArraySource | EncodedSource,
    counts: dict[str, int],
    fit: Fit,
    facts: dict[str, Any],
    notes: Sequence[str] = (),
) -> RawDataSet:
    """A data set of photographs; those that are damaged are in no split.

    Args:
        request: From `load`.
        source: The images.
        counts: How many images each part has, in the order of the rows.
        fit: How they are resized.
        facts: `remarks` and `damaged` as of `facts_of`, `duplicates`, the rows of equal images, and further `notes`.
        notes: More lines for the user.
    """
    damaged = [(int(row), str(text)) for row, text in facts["damaged"]]
    rows = {row for row, _ in damaged}
    lines = [*notes, *_damaged_note(request.name, damaged, len(source)), *image_notes(request.name, facts["remarks"])]
    if isinstance(source, EncodedSource) and not request.streaming and decoded_size(len(source), fit) > MOST_DECODED:
        size = decoded_size(len(source), fit)
        lines.append(f"{request.name} is streamed: its decoded images would be {size / 2**30:,.0f} GiB")
    mean, std = NORMALISE["imagenet"]
    return RawDataSet(
        source,
        _without(consecutive(counts), rows),
        mean,
        std,
        usual_augmentation(fit.size),
        (*lines, *facts.get("notes", [])),
        fit,
        [group for group in facts["duplicates"] if rows.isdisjoint(group)],
        len(rows),
    )


def _damaged_note(name: str, damaged: Sequence[tuple[int, str]], count: int) -> tuple[str, ...]:
    if not damaged:
        return ()
    return (f"{name}: without {len(damaged)} of {count:,} images, which cannot be decoded: {listed(damaged)}",)


def _without(parts: dict[str, Indices], rows: set[int]) -> dict[str, Indices]:
    left_out = np.array(sorted(rows), dtype=np.int64)
    return {name: np.setdiff1d(part, left_out) for name, part in parts.items()}
