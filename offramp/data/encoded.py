"""Images that stay encoded, in files or shards, and are decoded for every batch: bounded memory for any number."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from offramp.data.splits import Images, Indices
from offramp.images import INTERPOLATIONS, BadImage, Fit, decode, resize_and_crop, resize_shorter_side

Decoder = Literal["pillow", "turbo"]
"""What decodes random crops of JPEGs: Pillow, or libjpeg-turbo and a faster resize; everything else is Pillow's."""


@runtime_checkable
class Encodings(Protocol):
    """N encoded images, each of which can be read at any time, by several threads at once."""

    def __len__(self) -> int:
        """N."""

    def read(self, row: int) -> bytes | Path:
        """The bytes of an image, or the file that holds them."""

    def where(self, row: int) -> str:
        """What to call an image in an error."""

    def identity(self, row: int) -> bytes:
        """What tells an image from others without reading it, such as its name and size."""


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files, one each."""

    files: list[Path]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int) -> Path:
        """The file itself."""
        return self.files[row]

    def where(self, row: int) -> str:
        """The file."""
        return str(self.files[row])

    def identity(self, row: int) -> bytes:
        """The path; runs tell files apart by their names below the common folder, see `split_record`."""
        return str(self.files[row]).encode("utf-8", "surrogateescape")


Cut = Callable[..., Image.Image]
"""(upright image, place in the batch) -> the square that the network gets."""


def centre(fit: Fit) -> Cut:
    """Resized and cropped to the centre."""
    return lambda image, place: resize_and_crop(image, fit)


def random_box(fit: Fit, draws: Float[Any, "B 10 4"]) -> Cut:
    """A random part, resized; `draws` as `offramp.data.augment.boxes` takes them."""
    from offramp.data.augment import boxes

    def cut(image: Image.Image, place: int) -> Image.Image:
        top, left, height, width = boxes(draws[place : place + 1], image.height, image.width)[0].tolist()
        box = (left, top, left + width, top + height)
        return image.resize((fit.size, fit.size), INTERPOLATIONS[fit.interpolation], box=box)

    return cut


def random_window(fit: Fit, draws: Float[Any, "B 2"]) -> Cut:
    """A random square once the shorter side is resized; `draws` are shares of the free height and width."""
    size, resize = fit.size, fit.resize or fit.size

    def cut(image: Image.Image, place: int) -> Image.Image:
        image = resize_shorter_side(image, resize, fit.interpolation)
        down, right = draws[place].tolist()
        top, left = int(down * (image.height - size + 1)), int(right * (image.width - size + 1))
        return image.crop((left, top, left + size, top + size))

    return cut


Quickly = Callable[..., Iterator[bool]]
"""(encoded images, out=where their squares are written) -> whether each could be, else Pillow has to decode it."""


@dataclass(frozen=True)
class EncodedSource:
    """Labelled images, decoded when a batch of them is needed.

    Attributes:
        name: What the user called it.
        classes: The names of the C classes.
        labels: The class index of every image.
        images: Where the encoded images are.
        fit: How they are resized and cropped.
        decoder: What decodes the random crops of JPEGs.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int64[np.ndarray, "N"]
    images: Encodings
    fit: Fit
    decoder: Decoder = "pillow"
    streaming: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.fit.size, self.fit.size

    @property
    def files(self) -> Sequence[Path] | None:
        """The file of every row; None if the images are in shards."""
        return self.images.files if isinstance(self.images, ImageFiles) else None

    def __len__(self) -> int:
        return len(self.images)

    def identities(self, rows: Indices) -> list[bytes]:
        """What tells these images apart without reading them."""
        return [self.images.identity(row) for row in rows.tolist()]

    def contents(self, rows: Indices) -> Iterable[bytes]:
        """The encoded images."""
        encoded = (self.images.read(row) for row in rows.tolist())
        return (data.read_bytes() if isinstance(data, Path) else data for data in encoded)

    def batch(self, indices: Indices) -> UInt8[np.ndarray, "B 3 H W"]:
        """The images of these rows, resized and cropped to the centre.

        Raises:
            ValueError: naming the image, if it was changed since it was checked and cannot be decoded.
        """
        return self._decoded(indices, centre(self.fit))

    def crops(self, indices: Indices, draws: Float[Any, "B 10 4"], out: Images | None = None) -> Images:
        """A random part of each original, resized; `draws` as `offramp.data.augment.boxes` takes them.

        Args:
            indices: Rows of the images.
            draws: Decide the parts.
            out: Where to write them, as they are returned; default: new memory.

        Raises:
            ValueError: as `batch`.
        """
        from offramp.data import _turbo

        quickly = partial(_turbo.crops, draws=draws, fit=self.fit) if self.decoder == "turbo" else None
        return self._decoded(indices, random_box(self.fit, draws), quickly, out)

    def windows(self, indices: Indices, draws: Float[Any, "B 2"], out: Images | None = None) -> Images:
        """A random square of each image once its shorter side is resized as for evaluation.

        Args:
            indices: Rows of the images.
            draws: Position of each square, as shares in [0, 1) of the free height and width.
            out: As in `crops`.

        Raises:
            ValueError: as `batch`.
        """
        from offramp.data import _turbo

        quickly = partial(_turbo.windows, draws=draws, fit=self.fit) if self.decoder == "turbo" else None
        return self._decoded(indices, random_window(self.fit, draws), quickly, out)

    def _decoded(self, indices: Indices, cut: Cut, quickly: Quickly | None = None, out: Images | None = None) -> Images:
        """The images of these rows, cut by `cut(image, place in the batch)`; by `quickly` those that it can decode.

        In memory the channels are last: that is how decoders write and how normalising reads.
        """
        size, rows = self.fit.size, indices.tolist()
        encoded = [self.images.read(row) for row in rows]
        if out is None:
            out = np.empty((len(rows), size, size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
        done = repeat(False) if quickly is None else quickly(encoded, out=out)
        for place, row in enumerate(rows):
            if next(done):
                continue
            try:
                out[place] = decode(encoded[place], partial(cut, place=place))[0]
            except BadImage as error:
                where = self.images.where(row)
                raise ValueError(f"{where} cannot be decoded ({error}): repair or remove it") from error
        return out
