"""offramp sweep: what is refused before anything is trained, and what is maximised."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.cli._compare_progress import CompareProgress
from offramp.engine.local import Job
from offramp.runs.sweep_result import SweepResult, SweepTrial
from offramp.runs.sweep_score import RunScore, frontier_area


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--grid needs an option with its values, such as lr=0.05,0.1"),
        (["--grid", "lrr=1,2"], "unknown key 'lrr'; the nearest is 'lr'"),
        (
            ["--method", "muse", "--grid", "method.alhpa=1,2"],
            "unknown parameter of method muse 'alhpa'; the nearest is 'alpha'",
        ),
        (["--grid", "lr=1,1"], "--grid lr needs values, each once"),
        (["--grid", "epochs=1,2"], "--grid cannot vary epochs: runs are compared after the same number of epochs"),
        (["--grid", "lr=1,2", "--metric", "fronteer"], "unknown --metric 'fronteer'; the nearest is 'frontier'"),
        (["--grid", "lr=1,2", "--scheduler", "ash"], "unknown --scheduler 'ash'; the nearest is 'asha'"),
        (["--grid", "lr=1,2", "--search", "optuma"], "unknown --search 'optuma'; the nearest is 'optuna'"),
        (["--grid", "lr=1,2", "--search", "optuna"], "--search optuna needs --samples"),
        (["--grid", "lr=1,2", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["--grid", "lr=1,2", "--jobs", "0"], "--jobs must be auto or at least 1, got 0"),
        (["--grid", "lr=1,2", "--devices", "2"], "--devices 2 is for train: each of several runs trains in one"),
        (["--grid", "devices=1,2"], "--devices 2 is for train: each of several runs trains in one process"),
        (["--grid", "lr=1,2", "--address", "127.0.0.1:9"], "--address 127.0.0.1:9 does not answer"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, words: list[str], said: str, offramp: Callable[..., Any]) -> None:
    pytest.importorskip("ray")
    ran = offramp("sweep", "--data", "digits", "--out", tmp_path / "out", *words)
    assert ran.status == 2 and said in ran.err and ran.err.count("\n") == 1, ran.err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(
    tmp_path: Path, offramp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.runs.sweep.find_spec", lambda name: None)
    ran = offramp("sweep", "--data", "digits", "--out", tmp_path / "out", "--grid", "lr=1,2")
    assert ran.status == 1 and "a sweep needs the package ray: pip install 'offramp[ray]'" in ran.err
    assert "ray" not in {name for name in sys.modules if name == "ray.tune"}


def test_the_area_under_accuracy_over_cost() -> None:
    assert frontier_area([0.5], [10], 10) == 0.0, "nothing is reached below the cost of the only exit"
    assert frontier_area([0.5], [10], 20) == 0.25
    assert frontier_area([0.4, 0.8], [5, 10], 10) == pytest.approx(0.5 * 0.6)
    assert frontier_area([0.4, 0.2, 0.8], [2, 4, 6], 8) == pytest.approx((2 * 0.4 + 2 * 0.6 + 2 * 0.8) / 8)


def test_scores_of_an_epoch() -> None:
    record = {"val_accuracy": [0.25, None, 0.5]}
    assert RunScore("accuracy", {})("a", record) == 0.25
    assert RunScore("final", {})("a", record) == 0.5
    costs = {"a": [1, 2, 4], "b": [1, 2, 8]}
    assert RunScore("frontier", costs)("a", record) == frontier_area([0.25, 0.0, 0.5], [1, 2, 4], 8)


def test_the_table_shows_how_each_ended() -> None:
    one = SweepTrial("out/a", {"lr": "0.1"}, 3, False, [0.5, 0.75], 0.625, None)
    other = SweepTrial("out/b", {"lr": "0.2"}, 1, True, [0.25, 0.25], 0.25, None)
    failed = SweepTrial("out/c", {"lr": "9"}, 0, False, None, None, "it diverged")
    text = str(SweepResult("accuracy", one, [one, other, failed], "out/results.jsonl", "cpu"))
    rows = [line.split() for line in text.splitlines()]
    assert ["lr=0.1", "3", "50.0", "75.0", "62.50", "done"] in rows and "best: lr=0.1, in out/a" in text
    assert ["lr=0.2", "1", "25.0", "25.0", "25.00", "stopped"] in rows and "lr=9 failed: it diverged" in text


def test_the_table_fits_a_terminal() -> None:
    """Reasons of failures are below it, and it leaves out the accuracy of every exit if there are many."""
    options = {"lr": "0.1", "weight-decay": "1e-4"}
    reason = "the loss term 'ce' is nan at step 1 (epoch 1); there is no checkpoint yet. A lower lr or clip=1 may help"
    failed = SweepTrial("out/b", options, 0, False, None, None, reason)
    for exits in (3, 9):
        done = SweepTrial("out/a", options, 3, False, [0.5] * exits, 0.5, None)
        text = str(SweepResult("accuracy", done, [done, failed], "out/results.jsonl", "cpu"))
        assert max(map(len, text.splitlines())) <= 80 and ("exits %" in text) == (exits == 3)
        assert "failed: the loss term 'ce' is nan" in text and "50.00" in text


@pytest.mark.parametrize("stopped", [True, False])
def test_the_end_of_a_run_is_one_line(tmp_path: Path, stopped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that the scheduler stopped was said to be done as well."""
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "val_accuracy": [0.5, 0.75]}\n')
    job = Job("lr=1", "", [], tmp_path, tmp_path / "log", tmp_path / "answer", lambda: None, stopped=stopped)
    progress = CompareProgress(show=True)
    progress.begin(1, 0, 9)
    progress.started(job)
    capsys.readouterr()
    progress.ended(job)
    end = "stopped after 2 epochs" if stopped else "done in 0 s"
    assert capsys.readouterr().err == f"lr=1: {end}, val % 50.0 75.0\n"
