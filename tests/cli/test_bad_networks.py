"""What is said from the command line about networks, exits and weights that do not go together: one sentence each."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("my_nets")
SMALL = ("--net", "python:my_nets:small", "--image-size", 16)
Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--net", "resnet81"), "unknown net 'resnet81'; the nearest is 'resnet18' (see `offramp nets`)"),
        (("--net", "tim:resnet50"), "unknown net 'tim:resnet50'; before a colon the nearest is 'timm'"),
        (("--net", "timm:resnet5"), "unknown network of timm 'resnet5'; the nearest is 'resnet50'"),
        (("--net", "python:my_nets:smal"), "my_nets has no function 'smal'; the nearest is 'small'"),
        ((*SMALL, "--exits-after", "1", "--branch", "skech"), "unknown branch 'skech'; the nearest is 'sketch'"),
        (
            ("--net", "python:my_nets:windows", "--image-size", 16, "--exits-after", "frist"),
            "unknown layer 'frist' of Windows; the nearest is 'first'",
        ),
    ],
)
def test_unknown_names_get_the_nearest(offramp: Run, words: tuple[object, ...], says: str) -> None:
    assert_refused(offramp, words, says)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("7", "an exit after 7 would not come before the final exit, which begins with the pooling of 8×4×4"),
        ("1,1", "two exits are at the same place: 1 and 1 end together"),
        ("3,1", "exits must be in the order of the forward pass: 1,3, not 3,1"),
    ],
)
def test_wrong_places_show_the_order(offramp: Run, after: str, says: str) -> None:
    said = assert_refused(offramp, (*SMALL, "--exits-after", after), says)
    assert "exits can be attached after 0, 1, 2, 3" in said or after == "3,1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--net", "timm:vit_tiny_patch16_224", "--net.depth", 2, "--exits", 2, "--branch", "byot"),
            "byot exits need one map (channels, height, width) after every stage, but stage 1 passes on 197×192; "
            "`linear` exits fit",
        ),
        (
            (*SMALL, "--exits-after", "1", "--branch", "own"),
            "own needs a network that was published with exits (msdnet)",
        ),
        (
            ("--net", "msdnet", "--branch", "sketch"),
            "sketch cannot chain stage 8: its first block leaves (332×8×8), the whole stage (500×8×8)",
        ),
        (
            ("--net", "vgg19", "--branch", "byot", "--image-size", 16),
            "inputs of 3×16×16 do not fit the network",
        ),
    ],
)
def test_branches_that_do_not_fit_show_the_shapes(offramp: Run, words: tuple[object, ...], says: str) -> None:
    assert_refused(offramp, words, says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*SMALL[:2], "--image-size", 2, "--exits-after", "1", "--branch", "byot"), None),
        (
            ("--net", "python:my_nets:windows", "--image-size", 8, "--exits-after", "first"),
            "square that works is 16×16",
        ),
        (("--net", "vgg19", "--image-size", 8), "the smallest that fit are 3×32×32"),
    ],
)
def test_images_too_small_name_the_smallest_that_works(offramp: Run, words: tuple[object, ...], says: str) -> None:
    if says is None:  # padded convolutions take any size, so nothing is refused without need
        assert offramp("info", *words, "--classes", 3).status == 0
    else:
        assert_refused(offramp, words, says)


@pytest.mark.parametrize(
    ("net", "package", "extra"),
    [
        ("timm:resnet18", "timm", "vision"),
        ("torchvision:resnet18", "torchvision", "vision"),
        ("transformers:vit", "transformers", "transformers"),
    ],
)
def test_a_missing_extra_names_the_command(
    offramp: Run, net: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(offramp, ("--net", net), f"this needs the package {package}: pip install 'offramp[{extra}]'")


def test_weights_of_other_shapes_and_names(offramp: Run, tmp_path: Path) -> None:
    from my_nets import small  # type: ignore[import-not-found]

    values = small(10, channels=1).state_dict()
    values["9.weight"] = values.pop("0.bias")
    values["2.weight"] = values["2.weight"][:, :2].clone()
    torch.save(values, tmp_path / "w.pt")
    words = ("train", *SMALL[:2], "--exits-after", "1", "--branch", "linear", "--method", "joint", "--epochs", 1)
    ran = offramp(*words, "--weights", tmp_path / "w.pt", "--out", tmp_path / "a")
    assert ran.status == 1 and not (tmp_path / "a").exists()
    assert (
        "w.pt do not fit the network: 1 missing (0.bias); 1 unexpected (9.weight); "
        "1 of another shape (2.weight (8, 2, 3, 3) instead of (8, 4, 3, 3))" in ran.err
    )


def assert_refused(offramp: Run, words: tuple[object, ...], says: str) -> str:
    ran = offramp("info", *words)
    assert ran.status in (1, 2) and says in ran.err, ran.err
    assert ran.err.count("\n") == 1 and not ran.out
    return str(ran.err)
