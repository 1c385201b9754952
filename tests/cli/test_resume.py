"""`offramp train --out RUN --resume` alone: the configuration is in the folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.cli._argv import rewrite, value_of

Offramp = Callable[..., Any]


def test_the_folder_says_how_the_run_trains(offramp: Offramp, run: Path) -> None:
    ran = offramp("train", "--out", run, "--resume")
    assert (ran.status, ran.out) == (0, "") and f"{run} is finished: 2 epochs" in ran.err
    (run / "result.json").unlink()
    ran = offramp("train", f"--out={run}", "--resume", "--json")
    assert ran.status == 0 and ran.json["epochs"] == 2


def test_a_finished_run_that_lost_its_weights_is_not_called_finished(offramp: Offramp, run: Path) -> None:
    (run / "last.safetensors").unlink()
    for words in (["train", "--out", run, "--resume"], ["evaluate", run]):
        ran = offramp(*words)
        assert ran.status == 1 and f"{run} was trained to the end but has no last.safetensors: restore" in ran.err
        assert "--weights best" in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--lr", "0.05"), "lr is 0.1 there, not 0.05"),
        (("--method", "joint"), "method is 'muse' there, not 'joint'"),
        (("--net", "python:my_nets:small"), "net is 'python:cli_nets:tiny' there, not 'python:my_nets:small'"),
        (("--method.alpha", "0.1"), "method.alpha is 0.5 there, not 0.1"),
    ],
)
def test_what_is_typed_must_be_what_was_trained(offramp: Offramp, trained: Path, words: Any, says: str) -> None:
    ran = offramp("train", "--out", trained, "--resume", *words)
    assert ran.status == 1 and says in ran.err


@pytest.mark.parametrize(
    ("words", "precision", "threads"),
    [((), "auto", None), (("--precision", "32"), "32", None), (("--threads", "3"), "auto", "3")],
)
def test_settings_of_a_device_are_not_those_of_another(
    tmp_path: Path, words: tuple[str, ...], precision: str, threads: str | None
) -> None:
    stored = "device: cuda\nprecision: tf32\nthreads: 1\nmemory-format: contiguous\ngraph: null\nlr: 0.3\n"
    (tmp_path / "config.yaml").write_text(stored)
    resumed = ["train", "--out", str(tmp_path), "--resume"]
    assert {"--precision", "tf32", "--threads", "--memory-format"} <= {*rewrite([*resumed])}
    assert {"--precision", "tf32", "--threads"} <= {*rewrite([*resumed, "--device", "cuda"])}
    moved = rewrite([*resumed, "--device", "cpu", *words])
    assert value_of(moved, "precision") == (None if precision == "auto" else precision)
    assert value_of(moved, "threads") == threads and value_of(moved, "memory-format") is None
    assert value_of(moved, "lr") == "0.3" and value_of(moved, "device") == "cpu"


def test_without_resume_or_a_run_nothing_is_read(offramp: Offramp, trained: Path, tmp_path: Path) -> None:
    ran = offramp("train", "--data", "digits", "--out", trained)
    assert ran.status == 1 and "contains a run with another configuration" in ran.err
    ran = offramp("train", "--resume", "--out")
    assert (ran.status, ran.err) == (2, "offramp: --out needs a value\n")
    (tmp_path / "config.yaml").write_text("lr: [1\n")
    ran = offramp("train", "--resume", "--out", tmp_path)
    assert ran.status == 2 and f"{tmp_path / 'config.yaml'} is not YAML" in ran.err
