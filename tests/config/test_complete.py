"""What network and data decide: inputs as pretrained weights expect them, forms by image size, values of papers."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.config import Config, build_backbone, complete, flat, keep_choices, resolve
from offramp.config.complete import _paper_values

VISION = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 70, 90, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = root / "cd"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return root


def completed(pets: Path, **options: Any) -> Any:
    config = {"data": f"folder:{pets}", "holdout": 0.0, "image_size": 64, "method": "joint", "width": 8, **options}
    config["data_options"] = {"cache_dir": str(pets.parent / "cache"), **config.get("data_options", {})}
    return complete(resolve(Config(**config)))


@pytest.mark.parametrize(("size", "form"), [(32, "cifar"), (63, "cifar"), (64, "imagenet")])
def test_the_form_of_a_resnet_follows_the_size_of_the_images(pets: Path, size: int, form: str) -> None:
    config, data, notes = completed(pets, image_size=size)
    assert flat(config)["net.form"] == form
    said = [note for note in notes if "net.form is imagenet for images of 64 pixels" in note]
    assert len(said) == (form == "imagenet")
    stem = build_backbone(config, classes=2, channels=3, size=data.shape[1:]).stages[0][0]
    assert stem.conv.kernel_size == ((7, 7) if form == "imagenet" else (3, 3))
    values, _, notes = completed(pets, image_size=64, net_options={"form": "cifar"})
    assert flat(values)["net.form"] == "cifar" and not any("net.form" in note for note in notes)


def test_a_recorded_form_is_kept_when_a_run_is_resumed() -> None:
    config = resolve(Config(net="resnet18", data="folder:x"))
    kept = keep_choices(config, {"net.form": "cifar", "data.mean": [0.5]})
    assert flat(kept)["net.form"] == "cifar" and flat(kept)["data.mean"] == [0.5]
    several = resolve(Config(net="resnet18,resnet34", method="dml", data="folder:x"))
    kept = keep_choices(several, {"net.resnet18.form": "imagenet", "net.resnet34.form": "cifar"})
    assert flat(kept)["net.resnet18.form"] == "imagenet"


@VISION
@pytest.mark.parametrize(
    ("net", "mean", "interpolation", "crop"),
    [
        ("timm:resnet18", [0.485, 0.456, 0.406], "bicubic", 0.95),
        ("timm:vit_tiny_patch16_224", [0.5, 0.5, 0.5], "bicubic", 0.9),
        ("torchvision:resnet50", [0.485, 0.456, 0.406], "bilinear", 224 / 232),
    ],
)
def test_inputs_are_those_of_the_networks_own_configuration(
    pets: Path, net: str, mean: list[float], interpolation: str, crop: float
) -> None:
    config, data, notes = completed(pets, net=net, width=None)
    stored = flat(config)
    assert stored["data.mean"] == mean and list(data.mean) == mean
    assert (stored["data.interpolation"], stored["data.crop"]) == (interpolation, pytest.approx(crop))
    assert data.fit is not None and data.fit[1:] == (int(64 / crop), interpolation)
    assert notes[0].startswith(
        f"images are prepared as {net} expects them: mean {','.join(map('{:.4g}'.format, mean))}"
    )


@VISION
def test_what_is_given_wins_and_what_was_recorded_stays(pets: Path) -> None:
    ours = {"mean": "0.1,0.2,0.3", "interpolation": "bilinear", "resize": 70}
    config, data, _ = completed(pets, net="torchvision:resnet18", width=None, data_options=ours)
    assert data.mean == (0.1, 0.2, 0.3) and data.std == (0.229, 0.224, 0.225)
    assert data.fit == (64, 70, "bilinear") and "data.crop" not in flat(config)
    old = resolve(dataclasses.replace(config, data_options={"cache_dir": str(pets.parent / "cache")}))
    again = complete(old, resumed=True)
    assert again.config.data_options == old.data_options and again.data.fit.interpolation == "bilinear"


@VISION
def test_cifar_and_digits_keep_their_own_normalisation() -> None:
    config = resolve(Config(net="timm:resnet18", data="digits", method="joint"))
    assert complete(config).config.data_options == {}


@pytest.mark.parametrize(
    ("net", "data", "classes", "said"),
    [
        ("resnet18", "folder:x", 1000, "muse on ImageNet: the paper uses other values than the defaults; add "),
        ("resnet18", "cifar100", 100, None),
        ("resnet152", "cifar100", 100, "muse on CIFAR-100, ResNet152: the paper uses other values"),
        ("wrn28-4", "cifar100", 100, "muse on CIFAR-100, wide ResNets: the paper uses other values"),
        ("resnet18", "folder:x", 10, None),
    ],
)
def test_values_of_a_paper_for_these_data_are_named(net: str, data: str, classes: int, said: str | None) -> None:
    from types import SimpleNamespace

    facts: Any = SimpleNamespace(classes=tuple(map(str, range(classes))), shape=(3, 64, 64))
    config = resolve(Config(net=net, data=data, method="muse"))
    notes = _paper_values(config, facts)
    assert [note.startswith(said or "") for note in notes] == ([True] if said else [])
    if net == "resnet152":
        assert notes[0].endswith("add method.beta_begin=1e-5 method.beta_end=1e-6")
        betas = {"beta_begin": 1e-5, "beta_end": 1e-6}
        chosen = resolve(Config(net=net, data=data, method="muse", method_options=betas))
        assert _paper_values(chosen, facts) == ()
