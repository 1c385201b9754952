"""offramp info: a network with its exits, as a drawing and as numbers."""

from collections.abc import Callable
from typing import Any

import pytest

from offramp import Config, info
from offramp.methods import available

Offramp = Callable[..., Any]


def test_the_numbers_are_the_published_ones(offramp: Offramp) -> None:
    ran = offramp("info", "--net", "resnet18", "--branch", "sketch", "--json")
    assert ran.status == 0, ran.err
    result = ran.json
    assert round(result["macs"][-1] / 1e9, 4) == 0.5555
    assert [round(count / 1e6, 1) for count in result["macs"][:-1]] == [329.0, 404.5, 480.0]
    assert round(result["parameters"]["main"] / 1e6, 3) == 11.220
    assert round(result["parameters"]["total"] / 1e6, 3) == 24.462
    assert [len(result[name]) for name in ("macs", "macs_cumulative", "msdnet_ops", "eed_flops")] == [4] * 4
    assert (result["shape"], result["classes"]) == ([3, 32, 32], 100)
    assert result["options"]["net"] == {
        "width": 64,
        "form": "cifar",
        "stem_relu": True,
        "parts": [1, 1, 1, 1],
        "image_size": None,
    }


def test_eed_flops_are_in_the_unit_of_its_table(offramp: Offramp) -> None:
    assert offramp("info", "--branch", "eed", "--json").json["eed_flops"] == [0.42, 0.66, 0.88, 1.12]


def test_the_drawing_shows_every_stage_and_exit(offramp: Offramp) -> None:
    ran = offramp("info", "--net", "resnet18", "--branch", "byot", "--width", 8, "--classes", 7)
    assert ran.status == 0, ran.err
    assert "resnet18 with byot exits, 7 classes" in ran.out
    assert all(shape in ran.out for shape in ("3×32×32", "8×32×32", "16×16×16", "32×8×8", "64×4×4"))


def test_operations_of_a_small_network_are_not_rounded_to_zero(offramp: Offramp) -> None:
    out = offramp("info", "--width", 2, "--branch", "linear", "--classes", 4, "--image-size", 16).out
    assert "kMAC" in out and " 0.0 " not in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_size_width_channels_and_parameters_count(offramp: Offramp) -> None:
    def macs(*words: object) -> list[int]:
        ran = offramp("info", "--json", *words)
        assert ran.status == 0, ran.err
        return list(ran.json["macs"])

    small = macs("--width", 8)
    less = macs("--net.width=8", "--channels", 1, "--classes", 10)
    assert less[0] == small[0] - 2 * 9 * 8 * 32 * 32 - 90 * 64
    assert macs("--net.width", 8, "--image-size", 63, "--branch.sbc_extra", 3)[-1] > 3.8 * small[-1]
    assert macs("--net.width", 8, "--image-size", 64)[-1] < small[-1]  # the form for ImageNet, by the size


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--net", "resnet81"), "unknown net 'resnet81'; the nearest is 'resnet18' (see `offramp nets`)"),
        (("--branch", "skech"), "unknown branch 'skech'; the nearest is 'sketch' (see `offramp branches`)"),
        (("--net.widht", "8"), "the nearest is 'width'"),
        (("--net.width", "wide"), "--net.width takes a whole number, got 'wide'"),
        (("--classes", "0"), "classes of at least 1, got 0"),
        (("--width", "0"), "width of at least 1, got 0"),
        (("--image-size", "0"), "--image-size must be at least 1, got 0"),
        (("--image-size", "-4"), "--image-size must be at least 1, got -4"),
        (("--clases", "7"), "--classes"),
        (("--classes", "many"), "many"),
    ],
)
def test_mistakes_get_one_sentence(offramp: Offramp, words: tuple[str, ...], says: str) -> None:
    ran = offramp("info", *words)
    assert ran.status in (1, 2)
    assert says in ran.err and ran.err.count("\n") == 1 and not ran.out


def test_exits_behind_some_stages(offramp: Offramp) -> None:
    """BEED's table has two early exits on wide ResNets."""
    words = ("info", "--net", "wrn16-4", "--branch", "byot")
    result, every = offramp(*words, "--exits-at", "2,3", "--json").json, offramp(*words, "--json").json
    assert len(every["macs"]) == 4 and result["macs"] == every["macs"][1:]
    ran = offramp(*words, "--exits-at", "4")
    assert ran.status and "--exits-at must name stages from 1 to 3 of this network, got 4" in ran.err


def test_print_shows_what_the_command_line_prints(offramp: Offramp) -> None:
    cohort = ("--width", 8, "--method", "dml", "--net", "resnet18")
    for words, config in (
        (("--width", 8), Config(width=8)),
        (cohort, Config(net="resnet18", width=8, method="dml")),
    ):
        printed = offramp("info", *words).out
        assert [line.rstrip() for line in printed.rstrip().splitlines()] == str(info(config)).splitlines()


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == "boostnet" else pytest.mark.full) for name in available()]
)
def test_a_network_with_any_method(method: str) -> None:
    assert info(Config(method=method, width=8, data="digits", branch="linear")).macs
