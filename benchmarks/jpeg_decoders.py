"""Milliseconds of CPU time in which each installed decoder decodes a whole JPEG, in one thread.

    python benchmarks/data.py --only-make FOLDER --images 1000
    python benchmarks/jpeg_decoders.py FOLDER >> results/jpeg-decoders.jsonl

It imports nothing of offramp, so that it also runs with a Python of other packages: published builds of torchvision do
not decode beside a PyTorch without CUDA, but Debian's package `python3-torchvision` does (`/usr/bin/python3`). Decoders
that are missing are named in the record. The time of each is the lowest of some rounds, which take turns.
"""

import argparse
import io
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

Decode = Callable[[bytes], Any]


def pillow() -> Decode:
    import numpy as np
    from PIL import Image

    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def simplejpeg() -> Decode:
    import simplejpeg as package

    return lambda data: package.decode_jpeg(data)


def torchvision() -> Decode:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


DECODERS: dict[str, Callable[[], Decode]] = {"pillow": pillow, "simplejpeg": simplejpeg, "torchvision": torchvision}


def found(images: list[bytes], missing: dict[str, str]) -> Iterator[tuple[str, Decode]]:
    """The decoders that decode an image here; why the others do not is added to `missing`."""
    for name, make in DECODERS.items():
        try:
            decode = make()
            decode(images[0])
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = str(error).splitlines()[0]
        else:
            yield name, decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args()
    images = [file.read_bytes() for file in sorted(options.folder.rglob("*.jpg"))[: options.images]]
    if not images:
        sys.exit(f"{options.folder} has no *.jpg: create some with data.py --only-make FOLDER")
    missing: dict[str, str] = {}
    decoders = dict(found(images, missing))
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(options.rounds):
        for name, decode in decoders.items():
            began = time.process_time()
            for data in images:
                decode(data)
            seconds[name].append(time.process_time() - began)
    record = {
        "benchmark": "jpeg_decoders",
        "images": len(images),
        "mean_bytes": sum(map(len, images)) / len(images),
        "ms": {name: 1000 * min(values) / len(images) for name, values in seconds.items()},
        "missing": missing,
        "versions": {name: version(name) for name in decoders} | {"python": platform.python_version()},
        "machine": platform.processor() or platform.machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017 (Python 3.10 and older)
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
