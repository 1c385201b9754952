"""Values of a wrong type are refused with one sentence: the parameter, what it takes, and what it got."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

import offramp
from offramp import Config, Goal
from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError


@pytest.fixture(autouse=True)
def _no_checks_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are refused as they are for users, not by what checks them in tests (tests/shape_checks.py)."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


RUN = "a path or a run that `train` or `load_run` returned"
CALLS: list[tuple[Callable[..., Any], str]] = [
    (lambda: offramp.train("digits", "a"), "config must be an instance of offramp.Config, got 'digits'"),
    (lambda: offramp.train(Config(), None), "out must be a path, got None"),
    (lambda: offramp.train(Config(), "a", nodes=True), "nodes must be a whole number, got True"),
    (lambda: offramp.calibrate("a", 0.7), "goal must be an instance of offramp.Goal, got 0.7"),
    (lambda: offramp.calibrate("a", Goal(macs=0.7), weights="bset"), "weights must be 'last' or 'best', got 'bset'"),
    (
        lambda: Goal(macs="70%"),
        "macs must be a share of the plain network such as 0.5, or a count such as 250e6, got '70%'",
    ),
    (lambda: Goal(ms=1, batch_size="64"), "batch_size must be a whole number, got '64'"),
    (lambda: Goal(macs=0.5, never_slower_at=8), "never_slower_at must be a list of whole numbers, got 8"),
    (lambda: Goal(macs=0.5, save="mac"), "save must be 'macs' or 'ms', got 'mac'"),
    (lambda: Goal(macs=0.5, temperatures="on"), "temperatures must be a number, a list of numbers or 'fit', got 'on'"),
    (lambda: Config(width="8"), "width must be a whole number, got '8'"),
    (lambda: Config(epochs=2.5), "epochs must be a whole number, got 2.5"),
    (lambda: Config(holdout="0.3"), "holdout must be a number, got '0.3'"),
    (lambda: Config(optimizer="adam"), "optimizer must be 'sgd' or 'adamw', got 'adam'"),
    (lambda: Config(exits="all"), "exits must be a whole number or 'auto', got 'all'"),
    (lambda: Config(exits_after="layer1,layer2"), "exits_after must be a list of strings, got 'layer1,layer2'"),
    (lambda: Config(pretrained="yes"), "pretrained must be True or False, got 'yes'"),
    (lambda: Config(net_options=[("width", 8)]), "net_options must be a dict, got [('width', 8)]"),
    (lambda: Config(net=["resnet18"] * 9), "net must be a string, got an object of type list"),
    (lambda: offramp.evaluate(3), f"run must be {RUN}, got 3"),
    (lambda: offramp.evaluate("a", reporter=print), "reporter must be an instance of offramp.Reporter, got <built-in"),
    (lambda: offramp.bench("a", batch=64), "batch must be a list of whole numbers, got 64"),
    (lambda: offramp.report(["a", "b"]), f"each of runs must be {RUN}, got ['a', 'b']"),
    (lambda: offramp.curves("a", write="a.csv"), "write must be a list of paths, got 'a.csv'"),
    (
        lambda: offramp.compare(Config(), "joint", "a"),
        "methods must be a list of strings or tuples of a string and a dict, got 'joint'",
    ),
    (lambda: offramp.sweep(Config(), {"lr": 0.05}, "a"), "grid must be a dict of lists, got {'lr': 0.05}"),
    (lambda: offramp.reproduce("muse", seeds=0), "seeds must be a list of whole numbers, got 0"),
    (lambda: offramp.predict("a", "a.jpg"), "images must be a list of paths, got 'a.jpg'"),
    (lambda: offramp.info("resnet18"), "config must be an instance of offramp.Config, got 'resnet18'"),
    (lambda: offramp.available("nets"), "kind must be 'net', 'branch', 'method' or 'data', got 'nets'"),
    (lambda: offramp.attach("resnet18", print), "backbone must be an instance of offramp.Backbone, got 'resnet18'"),
    (lambda: offramp.Method("loss"), "objective must be a function, got 'loss'"),
    (lambda: offramp.ExitPolicy(thresholds=0.5, enabled=(True,)), "thresholds must be a list of numbers, got 0.5"),
    (lambda: offramp.AsyncPredictor(3), "bundle must be an instance of offramp.Bundle or a path, got 3"),
    (lambda: offramp.Server("a", port="8000"), "port must be a whole number, got '8000'"),
    (
        lambda: offramp.StepTrainer("muse", None, None, input_shape=(3, 32), epochs=1),
        "method must be an instance of offramp.Method, got 'muse'",
    ),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_a_value_of_a_wrong_type(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        call()
    assert str(caught.value).startswith(message) and caught.value.parameters


def test_what_counts_as_the_type() -> None:
    config = Config(epochs=np.int64(3), lr=np.float32(0.5), gamma=1, milestones=[0.5], data_dir="images")  # type: ignore[arg-type]
    assert config.data_dir == Path("images") and config.milestones == [0.5] and config.epochs == 3
    assert (type(config.epochs), type(config.lr), config.lr) == (int, float, 0.5)  # what YAML and JSON can hold


def test_paths_lists_and_iterators() -> None:
    @check_arguments
    def given(files: list[Path], *, numbers: Iterable[int] | None = None, **rest: int) -> Any:
        return files, numbers, rest

    numbers = iter([1, 2])
    assert given(["a"], numbers=numbers, more="any") == ([Path("a")], numbers, {"more": "any"})  # type: ignore
    with pytest.raises(TypeError, match=r"given\(\) missing 1 required positional argument: 'files'"):
        given()  # type: ignore[call-arg]
