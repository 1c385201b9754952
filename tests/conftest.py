"""What all tests share: run-time shape checks on the whole package, threads kept few, the data folder."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("offramp", "beartype.beartype")

import pytest  # noqa: E402 (the hook must come first)
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def cifar100_dir() -> Path:
    """The CIFAR-100 shards under $OFFRAMP_DATA; the test is skipped, visibly, where they are not."""
    root = os.environ.get("OFFRAMP_DATA")
    folder = Path(root) / "cifar100" if root else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs CIFAR-100 in $OFFRAMP_DATA/cifar100")
    return folder
