"""offramp sweep through Ray Tune: Ctrl-C, a lost node, Optuna; chosen on val, in the ledger once."""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


def test_stopped_and_continued_every_training_that_ends_is_in_the_ledger_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine, workers at its 15 starve
    out, said = tmp_path / "out", tmp_path / "said"
    words = ["sweep", "--width", "4", "--data", "digits", "--epochs", "9", "--batch-size", "64", "--precision", "32"]
    words += ["--method", "joint", "--device", "cpu", "--checkpoint-every", "5", "--scheduler", "asha", "--jobs", "2"]
    words += ["--grid", "lr=0.05,0.0001,1e30", "--out", str(out)]
    process = forked.start(*words, out=said)
    end = time.monotonic() + 300
    while not list(out.glob("*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < end, said.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130, said.read_text()
    assert f"saved in {out}; the same command continues" in said.read_text()
    process = forked.start(*words, "--json", out=tmp_path / "result", err=said)
    assert process.wait(400) == 1, said.read_text()
    result = json.loads((tmp_path / "result").read_text())
    trials = {trial["options"]["lr"]: trial for trial in result["trials"]}
    assert set(trials) == {"0.05", "0.0001", "1e30"}
    assert "at step" in trials["1e30"]["failure"], "one that diverges stops no other"
    assert result["best"] == trials["0.05"] and trials["0.05"]["epochs"] == 9
    ended = [lr for lr, trial in trials.items() if not trial["stopped"] and not trial["failure"]]
    lines = [json.loads(line)["config"]["lr"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(lines) == sorted(map(float, ended))
    log = next(out.glob("logs/lr=0.05*.log")).read_text()
    assert "continuing at epoch" in log
    process = forked.start(*words, "--json", out=tmp_path / "again", err=said)
    assert process.wait(200) == 1, said.read_text()
    assert json.loads((tmp_path / "again").read_text())["trials"] == result["trials"], "a sweep that ended stays so"


def test_a_run_that_ends_by_patience_was_trained_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for one that the scheduler had stopped: it was in no ledger, and never the best."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    out, said = tmp_path / "out", tmp_path / "said"
    words = ["sweep", "--width", "4", "--data", "digits", "--epochs", "20", "--batch-size", "64", "--precision", "32"]
    words += ["--method", "joint", "--device", "cpu", "--patience", "1", "--grid", "lr=1e-6", "--out", str(out)]
    for time_ in ("first", "second"):  # the second time, everything is done
        process = forked.start(*words, "--json", out=tmp_path / time_, err=said)
        assert process.wait(400) == 0, said.read_text()
        result = json.loads((tmp_path / time_).read_text())
        assert result["best"] == result["trials"][0]
        assert result["best"]["epochs"] < 20 and not result["best"]["stopped"]
        assert len((out / "results.jsonl").read_text().splitlines()) == 1


def test_optuna_and_a_lost_node_whose_trial_resumes_on_another(cluster: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    node = cluster.add_node(num_cpus=1)
    out, said = tmp_path / "out", tmp_path / "said"
    words = ["sweep", "--width", "4", "--data", "digits", "--epochs", "8", "--batch-size", "64", "--precision", "32"]
    words += ["--method", "joint", "--device", "cpu", "--checkpoint-every", "5", "--address", cluster.address]
    words += ["--search", "optuna", "--samples", "2", "--grid", "lr=0.05,0.02", "--grid", "seed=0,1,2,3"]
    process = forked.start(*words, "--out", str(out), "--json", out=tmp_path / "result", err=said)
    end = time.monotonic() + 300
    while len(list(out.glob("*/checkpoints"))) < 2:
        assert process.poll() is None and time.monotonic() < end, said.read_text()
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    assert process.wait(400) == 0, said.read_text()
    trials = json.loads((tmp_path / "result").read_text())["trials"]
    assert [(trial["epochs"], trial["failure"]) for trial in trials] == [(8, None)] * 2
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    assert sorted(log.read_text().count("continuing at epoch") for log in (out / "logs").glob("*.log")) == [0, 1]


def test_trials_of_a_node_that_does_not_see_the_folder_are_fetched_and_continue_when_it_is_lost(
    hidden_node: Any, cluster: Any, tmp_path: Path
) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    recipe = ["--width", "4", "--data", "digits", "--epochs", "8", "--batch-size", "64", "--precision", "32"]
    recipe += ["--method", "joint", "--device", "cpu", "--checkpoint-every", "5"]
    words = ["sweep", *recipe, "--address", cluster.address, "--grid", "lr=0.05,0.02", "--out", str(out)]
    runs = {lr: out / f"lr={lr},joint-seed-0" for lr in ("0.05", "0.02")}

    def newest(run: Path) -> str:
        return max((path.name for path in run.glob("checkpoints/step-*")), default="")

    def wait_for_checkpoints(before: Mapping[str, str], process: forked.Program) -> None:
        """Until one that is newer than these has been fetched from every run."""
        end = time.monotonic() + 400
        while any(newest(run) <= before[lr] for lr, run in runs.items()):
            assert process.poll() is None and time.monotonic() < end, said.read_text()
            time.sleep(0.05)

    process = forked.start(*words, out=tmp_path / "refused", err=said)
    assert process.wait(300) == 2, said.read_text()
    assert f"does not see {out}: choose an --out that all nodes share, or add --fetch" in said.read_text()
    assert not list(out.iterdir())
    process = forked.start(*words, "--fetch", out=tmp_path / "stopped", err=said)
    wait_for_checkpoints(dict.fromkeys(runs, ""), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130, said.read_text()
    assert f"saved in {out}; the same command continues" in said.read_text()
    process = forked.start(*words, "--fetch", "--json", out=tmp_path / "result", err=said)
    wait_for_checkpoints({lr: newest(run) for lr, run in runs.items()}, process)
    hidden_node.kill()
    assert process.wait(400) == 0, said.read_text()
    trials = json.loads((tmp_path / "result").read_text())["trials"]
    assert [(trial["epochs"], trial["failure"], trial["stopped"]) for trial in trials] == [(8, None, False)] * 2
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    logs = [(out / f"logs/{run.name}.log").read_text() for run in runs.values()]
    assert sorted(log.count("continuing at epoch") for log in logs) == [1, 2], "one run lost its node"
    for lr, run in runs.items():
        (ran,) = forked.run_offramp("train", *recipe, "--lr", lr, "--out", tmp_path / lr)
        assert ran.returncode == 0, ran
        one, other = (load_file(folder / "last.safetensors") for folder in (tmp_path / lr, run))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
