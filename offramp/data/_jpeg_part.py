"""A part of a JPEG, decoded by nvImageCodec on the CPU without the pixels around it, if that package is installed.

It decodes with libjpeg-turbo, like simplejpeg, so the pixels are the same; only entropy coding is undone above and
beside the part. It needs no GPU.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import UInt8

PACKAGE, EXTENSION = "nvidia.nvimgcodec", "libjpeg_turbo_ext.so*"
OLDEST = 0, 9
"""Version that decodes parts into memory that is used again."""
ON_CPU = -99999
"""nvImageCodec's device number of a decoder that uses no GPU (NVIMGCODEC_DEVICE_CPU_ONLY)."""


class PartDecoder:
    """Decodes in one thread; every part overwrites the pixels of the previous one."""

    def __init__(self, library: Any) -> None:
        self.library, self.image = library, None
        backend = library.Backend(library.BackendKind.CPU_ONLY)
        self.decoder = library.Decoder(device_id=ON_CPU, max_num_cpu_threads=1, backends=[backend])

    def part(self, data: bytes, box: Sequence[int]) -> UInt8[np.ndarray, "H W 3"] | None:
        """The part (top, left, height, width) of an image; None if it cannot be decoded."""
        top, left, height, width = box
        region = self.library.Region(top, left, top + height, left + width)
        stream = self.library.CodeStream(data).get_sub_code_stream(region=region)
        image = self.decoder.decode(stream, image=self.image)
        if image is None:
            return None
        self.image = image
        return np.asarray(image)


_decoders, _importing = threading.local(), threading.Lock()


def decoder() -> PartDecoder | None:
    """The decoder of this thread; None if the package is not installed."""
    if not hasattr(_decoders, "own"):
        with _importing:
            library = _library()
        _decoders.own = None if library is None else PartDecoder(library)
    own: PartDecoder | None = _decoders.own
    return own


@cache
def _library() -> Any | None:
    try:
        spec = find_spec(PACKAGE)
    except ModuleNotFoundError:  # no package of NVIDIA at all
        return None
    if spec is None or spec.origin is None:
        return None
    try:
        with _only_jpegs(Path(spec.origin).parent / "extensions"):
            library = import_module(PACKAGE)
    except ImportError:  # built for another system
        return None
    return library if tuple(map(int, library.__version__.split(".")[:2])) >= OLDEST else None


@contextmanager
def _only_jpegs(extensions: Path) -> Iterator[None]:
    """Within this context, nvImageCodec loads only its JPEG decoder for CPUs: without a GPU, the others print errors.

    A program that also needs the others imports the package before.
    """
    with TemporaryDirectory() as folder:
        for extension in extensions.glob(EXTENSION):
            (Path(folder) / extension.name).symlink_to(extension)
        settings = {"NVIMGCODEC_EXTENSIONS_PATH": folder, "PYNVIMGCODEC_VERBOSITY": "0"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
