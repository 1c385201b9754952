"""What cannot train is refused before it does: one sentence with the reason and what to do, and nothing written."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp import methods

Offramp = Callable[..., Any]
TINY = "--data digits --width 4 --epochs 1 --batch-size 256 --precision 32"
HAVE_TEMPERATURE = [
    name for name in methods.available() if "temperature" in inspect.signature(methods.find(name).build).parameters
]


def refused(offramp: Offramp, tmp_path: Path, words: str) -> str:
    """What the program says when it refuses, on one line, without its name."""
    out = tmp_path / "run"
    tiny = TINY.replace("--width 4 ", "") if "msdnet" in words else TINY
    tiny = tiny.replace("--batch-size 256 ", "") if "--batch-size" in words else tiny
    ran = offramp("train", *tiny.split(), *words.split(), "--out", out)
    assert ran.status in (1, 2) and ran.out == ""
    assert not out.exists(), "something was written"
    lines = ran.err.splitlines()
    assert lines[-1].startswith("offramp: ") and len([line for line in lines if line.startswith("offramp: ")]) == 1
    return str(lines[-1].removeprefix("offramp: "))


@pytest.mark.parametrize("temperature", ["0", pytest.param("-3", marks=pytest.mark.full)])
@pytest.mark.parametrize("method", HAVE_TEMPERATURE)
def test_a_temperature_that_is_not_positive(offramp: Offramp, tmp_path: Path, method: str, temperature: str) -> None:
    said = refused(offramp, tmp_path, f"--method {method} --method.temperature {temperature}")
    assert said.startswith(f"--method.temperature must be greater than 0 and finite, got {float(temperature)}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--method beed --method.balance 1.5",
            "balance 1.5 makes the weight of the first exit's cross-entropy, 2 - 1.5^3",
        ),
        (
            "--method eed --method.teachers=",
            "teachers must name at least one exit, 1 the shallowest and -1 the final one",
        ),
        ("--method eed --method.teachers 1,5", "teachers names exit 5, but the network has exits 1 to 4"),
        (
            "--method byot --branch linear",
            "this method compares features, but no early exit's are as wide as the final",
        ),
        ("--method muse --branch linear", "--method.schedule off leaves the term out"),
        ("--method eed --branch linear", "4, 8, 16 against 32; --method.adapt linear compares them"),
        (
            "--method beed --branch linear --method.adapt linear",
            "end in equal maps (--branch beed or --branch sketch), or --method.beta 0",
        ),
        ("--method hdkd --method.weights 1,2", "weights gives 2 weights, but hdkd with 4 exits has 10 losses"),
        ("--method hdkd --holdout 0", "learns from the val split while it trains, but nothing is held out"),
        (
            "--method hdkd --method.look_ahead optimizer --optimizer adamw",
            "implemented for sgd: take --optimizer sgd, got adamw",
        ),
        ("--method l2w --optimizer adamw", "looks ahead with the optimizer's own step, implemented for sgd"),
        (
            "--method joint --batch-size 1",
            "a batch norm of this network cannot train on a single sample",
        ),
        (
            "--method dbt --accumulate 2",
            "needs the whole batch: its temperature rises by the confidence of every batch: take --accumulate 1, got 2",
        ),
        (
            "--method joint --accumulate 3",
            "--batch-size 256 on --devices 1 does not divide evenly into --accumulate 3 parts each",
        ),
        (
            "--method hdkd --sync-batch-norm --devices 2",
            "--sync-batch-norm has no forward-mode derivative, and this method differentiates through a step",
        ),
        ("--method joint --sync-batch-norm --compile", "--sync-batch-norm and --compile cannot be combined"),
        *(
            (f"--strategy fsdp --devices 2 {words}", f"--strategy fsdp does not divide {what}: take --strategy ddp")
            for words, what in (
                ("--method dml", "several networks side by side"),
                ("--method hdkd", "methods with steps of their own"),
                ("--method joint --tune exits", "phases that freeze parts"),
                ("--method byot --method.adapt all", "learned parts of a method"),
                ("--method joint --ema 0.9", "a moving average, --ema"),
                ("--method joint --compile", "compile"),
            )
        ),
        ("--method vanilla --tune exits", "only exits are to be trained, but the network has no early exits"),
        ("--method dml --tune exits", "--tune tells a backbone from its exits, but this method trains networks side"),
        ("--method one --lr-backbone 0.1", "--lr-backbone tells a backbone from its exits"),
        ("--method boostnet --method.weaken 1,1,1", "weaken has 3 values, but the network has 4 exits: give 1, 2 or 4"),
    ],
)
def test_parameters_that_contradict_each_other_or_the_network(
    offramp: Offramp, tmp_path: Path, words: str, says: str
) -> None:
    said = refused(offramp, tmp_path, words)
    assert says in said


def test_one_exit_has_nobody_to_learn_from(offramp: Offramp, tmp_path: Path) -> None:
    said = refused(offramp, tmp_path, "--method muse --net msdnet --net.exits 1 --branch own")
    assert said.startswith("muse lets exits teach each other and needs at least 2 of them, the network has 1")


def test_vanilla_takes_exits_of_any_width(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("train", *TINY.split(), "--method", "vanilla", "--branch", "linear", "--out", tmp_path / "run")
    assert ran.status == 0, ran.err
