"""--pretrained where it cannot be: one sentence, and no run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Offramp = Callable[..., Any]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ("--net", "resnet18"),
            "--pretrained is for networks of timm and torchvision",
        ),
        (("--net", "timm:tf_efficientnet_lite0", "--weights", "a.pt"), "--pretrained and --weights cannot be combined"),
        (("--net", "timm:test_efficientnet_xyz"), "test_efficientnet_xyz"),
    ],
)
def test_refused(offramp: Offramp, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ran = offramp("train", "--pretrained", *words, "--data", "digits", "--out", tmp_path / "run")
    assert ran.status in (1, 2) and message in " ".join(ran.err.split()), ran.err
    assert not (tmp_path / "run").exists()
