"""CIFAR-100 from the data directory: Parquet shards, the python or the binary version (folder or tar.gz), or hub:ID."""

from typing import Literal

from offramp.data._cifar import Cifar, read
from offramp.data.splits import RawDataSet, Request

CIFAR100 = Cifar(
    name="cifar100",
    classes=100,
    python={"train": ("train",), "test": ("test",)},
    python_home="cifar-100-python",
    python_archive="cifar-100-python",
    names_file="meta",
    names_key="fine_label_names",
    label_key="fine_labels",
    binary={"train": ("train.bin",), "test": ("test.bin",)},
    binary_home="cifar-100-binary",
    binary_archive="cifar-100-binary",
    binary_names="fine_label_names.txt",
    label_bytes=2,
    label_byte=1,
    column="fine_label",
    hub="uoft-cs/cifar100",
)

COARSE = CIFAR100._replace(
    classes=20,
    names_key="coarse_label_names",
    label_key="coarse_labels",
    binary_names="coarse_label_names.txt",
    label_byte=0,
    column="coarse_label",
)


def build(request: Request, *, labels: Literal["fine", "coarse"] = "fine") -> RawDataSet:
    """CIFAR-100, 50,000 + 10,000 images of 32x32 (A. Krizhevsky, 2009).

    Args:
        request: from `load`.
        labels: `fine` (100 classes) or `coarse` (20).
    """
    return read(CIFAR100 if labels == "fine" else COARSE, request)
