"""CIFAR-10 from the data directory: Parquet shards, the python or the binary version (folder or tar.gz), or hub:ID."""

from offramp.data._cifar import Cifar, read
from offramp.data.splits import RawDataSet, Request

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

CIFAR10 = Cifar(
    name="cifar10",
    classes=10,
    python={"train": _BATCHES, "test": ("test_batch",)},
    python_home="cifar-10-batches-py",
    python_archive="cifar-10-python",
    names_file="batches.meta",
    names_key="label_names",
    label_key="labels",
    binary={"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
    binary_home="cifar-10-batches-bin",
    binary_archive="cifar-10-binary",
    binary_names="batches.meta.txt",
    label_bytes=1,
    label_byte=0,
    column="label",
    hub="uoft-cs/cifar10",
)


def build(request: Request) -> RawDataSet:
    """CIFAR-10, 50,000 + 10,000 images of 32x32 in 10 classes (A. Krizhevsky, 2009)."""
    return read(CIFAR10, request)
