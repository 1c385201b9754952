import json
import os
import signal
import time
from pathlib import Path

import forked
import pytest
import torch
from cli_nets import NET
from safetensors.torch import load_file

from offramp.train import log

TINY = (*NET, "--data", "digits", "--epochs", "2", "--batch-size", "256", "--precision", "32")


def without_seconds(path: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in log.read(path)]


def start(log: Path, *words: object) -> forked.Program:
    return forked.start(*words, out=Path(os.devnull), err=log)


def assert_same_run(one: Path, other: Path) -> None:
    a, b = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a), [n for n in a if not torch.equal(a[n], b[n])]
    assert without_seconds(one / "metrics.jsonl") == without_seconds(other / "metrics.jsonl")


@pytest.mark.parametrize(
    ("precision", "moments"),
    [
        ("32", (5, 38)),
        *(pytest.param(precision, (5, 11, 24, 38, 47), marks=pytest.mark.full) for precision in ("32", "bf16")),
    ],
)
def test_killed_at_any_moment_and_resumed_is_bit_identical(tmp_path, precision, moments):
    """`moments`: steps after whose checkpoint the run is killed."""
    # dbt owns state (its temperature), mixup and the weights' average add more: all of it must survive the kill
    words = [
        "train",
        *NET,
        "--data",
        "digits",
        "--epochs",
        3,
        "--batch-size",
        64,
        "--precision",
        precision,
        "--checkpoint-every",
        3,
        "--method",
        "dbt",
        "--mixup",
        0.2,
        "--ema",
        0.9,
    ]
    whole = start(tmp_path / "log", *words, "--out", tmp_path / "whole")
    assert whole.wait(120) == 0, (tmp_path / "log").read_text()
    kills = 0
    for kill_after in moments:
        process = start(tmp_path / "log", *words, "--out", tmp_path / "killed", "--resume")
        newest = f"step-{kill_after // 3 * 3:09d}"
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if any(path.name >= newest for path in (tmp_path / "killed/checkpoints").glob("step-*")):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait(100)
    last = start(tmp_path / "log", *words, "--out", tmp_path / "killed", "--resume")
    assert last.wait(120) == 0, (tmp_path / "log").read_text()
    assert kills >= 2
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_run_leaves_everything_behind_and_resume_of_a_finished_run_says_so(offramp, tmp_path):
    ran = offramp("train", *TINY, "--out", tmp_path / "a", "--json")
    assert ran.status == 0
    assert ran.json["last"]["epoch"] == 2
    assert len(ran.json["best"]["val_accuracy"]) == 4
    assert ran.json["provenance"]["versions"]["torch"].startswith("2.")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "best.safetensors",
        "last.safetensors",
        "result.json",
    } <= names
    before = (tmp_path / "a/last.safetensors").stat().st_mtime_ns
    again = offramp("train", *TINY, "--out", tmp_path / "a", "--resume")
    assert again.status == 0
    assert "is finished: 2 epochs" in again.err
    assert (tmp_path / "a/last.safetensors").stat().st_mtime_ns == before


def test_metrics_have_every_step_once(offramp, tmp_path):
    offramp("train", *TINY, "--out", tmp_path / "a")
    steps = log.read(tmp_path / "a/metrics.jsonl", "step")
    assert [record["step"] for record in steps] == list(range(12))
    assert all(abs(record["loss"] - sum(record["terms"].values())) < 1e-5 for record in steps)
    assert [record["epoch"] for record in log.read(tmp_path / "a/metrics.jsonl", "epoch")] == [0, 1]


def test_run_of_another_configuration_is_never_overwritten(offramp, tmp_path):
    offramp("train", *TINY, "--out", tmp_path / "a")
    other = offramp("train", *TINY, "--lr", "0.05", "--out", tmp_path / "a")
    assert other.status == 1
    assert "lr is 0.1 there, not 0.05; nothing was overwritten" in other.err
    resumed = offramp("train", *TINY, "--lr", "0.05", "--out", tmp_path / "a", "--resume")
    assert resumed.status == 1
    same = offramp("train", *TINY, "--out", tmp_path / "a")
    assert same.status == 1
    assert "pass --resume" in same.err


def test_folder_that_is_no_run_is_left_alone(offramp, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    ran = offramp("train", *TINY, "--out", tmp_path)
    assert ran.status == 1
    assert "is not empty and does not contain an offramp run" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(offramp, tmp_path):
    words = ("train", *TINY, "--checkpoint-every", 6, "--out", tmp_path / "a")
    offramp(*words)
    (tmp_path / "a/result.json").unlink()
    newest = sorted((tmp_path / "a/checkpoints").glob("step-*"))[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ran = offramp(*words, "--resume")
    assert ran.status == 0
    assert f"{weights} is missing, truncated or changed" in ran.err
    assert "taking the checkpoint before it" in ran.err
    assert "continuing at epoch 2 of 2" in ran.err


def test_nan_stops_with_step_and_term_and_keeps_the_last_good_checkpoint(offramp, tmp_path):
    ran = offramp(
        "train",
        *NET,
        "--precision",
        "32",
        "--epochs",
        3,
        "--lr",
        "1e25",
        "--batch-size",
        256,
        "--checkpoint-every",
        1,
        "--out",
        tmp_path / "a",
    )
    assert ran.status == 1
    assert "at step" in ran.err
    assert "last good checkpoint is kept" in ran.err
    for path in (tmp_path / "a/checkpoints").glob("step-*"):
        weights = load_file(path / "weights.safetensors")
        assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    words = ["train", *NET, "--epochs", 300, "--batch-size", 64, "--out", tmp_path / "a"]
    process = start(tmp_path / "log", *words)
    deadline = time.monotonic() + 100
    while not (tmp_path / "a/best.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "log").read_text()
    assert "--resume continues" in said
    newest = sorted((tmp_path / "a/checkpoints").glob("step-*"))[-1]
    step = json.loads((newest / "checkpoint.json").read_text())["step"]
    assert len(log.read(tmp_path / "a/metrics.jsonl", "step")) == step


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_compiled_network_trains_as_it_does_otherwise(tmp_path):
    """In processes of their own: torch cannot trace the run-time shape checks that tests put around everything.

    At a small rate: rounding decides for ReLUs at their kink, which moves gradients of so small a network by percents.
    """
    words = "train --net resnet18 --width 4 --branch linear --method joint --epochs 1 --batch-size 256 --lr 0.002"
    for name, more in (("eager", ()), ("compiled", ("--compile",))):
        process = start(tmp_path / "log", *words.split(), "--precision", 32, *more, "--out", tmp_path / name)
        assert process.wait(280) == 0, (tmp_path / "log").read_text()
    eager, compiled = (
        [record["loss"] for record in log.read(tmp_path / run / "metrics.jsonl", "step")]
        for run in ("eager", "compiled")
    )
    assert compiled == pytest.approx(eager, rel=0.02) and compiled[0] == pytest.approx(eager[0], rel=1e-4)
    a, b = (load_file(tmp_path / run / "last.safetensors") for run in ("eager", "compiled"))
    assert a.keys() == b.keys()


def test_config_file_and_options_mix_and_options_win(offramp, tmp_path):
    recipe = tmp_path / "x.yaml"
    recipe.write_text(
        "net: {name: resnet18, width: 4}\nmethod: joint\nepochs: 1\nlr: 0.2\nbatch-size: 256\nmilestones: [0.5]\n"
    )
    ran = offramp("train", "--config", recipe, "--lr", "0.3", "--out", tmp_path / "a", "--json")
    assert ran.status == 0
    stored = (tmp_path / "a/config.yaml").read_text()
    assert "lr: 0.3" in stored
    assert "net.width: 4" in stored
    assert "method: joint" in stored
    assert "milestones:\n- 0.5\n" in stored


def test_the_stored_configuration_is_a_config_file(offramp, tmp_path):
    offramp("train", *TINY, "--method", "byot", "--out", tmp_path / "a")
    again = offramp("train", "--config", tmp_path / "a/config.yaml", "--out", tmp_path / "b")
    assert again.status == 0, again.err
    assert (tmp_path / "a/config.yaml").read_text() == (tmp_path / "b/config.yaml").read_text()
    weights = [load_file(tmp_path / run / "last.safetensors") for run in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("written", "typed"), [("net.width: 64", "--width"), ("width: 64", "--net.width")])
def test_width_is_one_option_under_two_names(offramp, tmp_path, written, typed):
    (tmp_path / "x.yaml").write_text(f"{written}\nepochs: 1\nbatch-size: 256\n")
    ran = offramp("train", "--config", tmp_path / "x.yaml", typed, 4, "--out", tmp_path / "a")
    assert ran.status == 0, ran.err
    assert "net.width: 4\n" in (tmp_path / "a/config.yaml").read_text()


def test_holdout_zero_has_only_the_last_epoch(offramp, tmp_path):
    ran = offramp("train", *TINY, "--holdout", "0", "--out", tmp_path / "a", "--json")
    assert ran.status == 0
    assert ran.json["best"] is None
    assert not (tmp_path / "a/best.safetensors").exists()
    refused = offramp("calibrate", tmp_path / "a", "--macs", "0.9")
    assert refused.status == 1
    assert "no split to calibrate on" in refused.err


def test_every_option_of_the_recipe_trains(offramp, tmp_path):
    ran = offramp(
        "train",
        *NET,
        "--epochs",
        1,
        "--batch-size",
        256,
        "--optimizer",
        "adamw",
        "--lr",
        "1e-3",
        "--schedule",
        "onecycle",
        "--label-smoothing",
        "0.1",
        "--mixup",
        "0.2",
        "--ema",
        "0.5",
        "--clip",
        "1",
        "--tensorboard",
        "--out",
        tmp_path / "a",
    )
    assert ran.status == 0, ran.err
    assert list((tmp_path / "a/events").iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--netz", "resnet18"), "Did you mean --net?"),
        (("--net", "resnet81"), "the nearest is 'resnet18'"),
        (("--method", "muze"), "the nearest is 'muse'"),
        (("--branch", "sketchy"), "the nearest is 'sketch'"),
        (("--data", "digitz"), "digits"),
        (("--method", "muse", "--method.alhpa", "1"), "the nearest is 'alpha'"),
        (("--net.widht", "1"), "the nearest is 'width'"),
        (("--method", "muse", "--method.alpha", "much"), "--method.alpha takes a number, got 'much'"),
        (("--method", "muse", "--method.alpha", "3"), "--method.alpha must be in [0, 1], got 3.0"),
        (("--method", "muse", "--method.schedule", "wave"), "takes one of cosine, constant, off"),
        (("--method", "muse", "--method.temperature", "0"), "temperature"),
        (("--lr", "-1"), "--lr must be positive"),
        (("--milestones", ".9", "--milestones", ".1"), "--milestones must be rising fractions"),
        (("--precision", "bf61"), '"bf16"'),
        (("--device", "cuda:7"), "not the number of a GPU: set CUDA_VISIBLE_DEVICES=7 for that one"),
        (("--device=7",), "set CUDA_VISIBLE_DEVICES=7"),
        (("--device", "gpu"), 'Invalid value "gpu" for --device'),
        (("--method", "muse", "--method.alpha"), "--method.alpha needs a value"),
        (("--config", "nowhere.yaml"), "config file nowhere.yaml does not exist"),
        (("--width", "8", "--net.width", "4"), "contradict each other"),
    ],
)
def test_mistakes_get_one_clear_sentence_and_start_nothing(offramp, tmp_path, words, says):
    ran = offramp("train", "--epochs", "1", "--out", tmp_path / "a", *words)
    assert ran.status == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nett: resnet18\n", "x.yaml: unknown key 'nett'; the nearest is 'net'"),
        ("- a\n- b\n", "x.yaml contains no options"),
        ("a: [1\n", "x.yaml is not YAML: line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        ("lr: fast\n", "x.yaml: lr takes a number, got 'fast'"),
        ("milestones: soon\n", "x.yaml: milestones takes comma-separated numbers, got 'soon'"),
        (
            "method: {name: muse, alhpa: 1}\n",
            "x.yaml: unknown parameter of method muse 'alhpa'; the nearest is 'alpha'",
        ),
        ("method: muze\n", "x.yaml: unknown method 'muze'; the nearest is 'muse'"),
        ("\x00", "x.yaml is not YAML: ReaderError"),
    ],
)
def test_bad_config_files_are_named(offramp, tmp_path, text, says):
    recipe = tmp_path / "x.yaml"
    recipe.write_text(text)
    ran = offramp("train", "--config", recipe, "--out", tmp_path / "a")
    assert ran.status == 2
    assert says in ran.err and ran.err.count("\n") == 1 and len(ran.err) < 200 + len(str(recipe))


def test_milestones_take_commas(offramp, tmp_path):
    recipe = tmp_path / "x.yaml"
    for typed in ("0.5,0.75", "[0.5, 0.75]"):
        recipe.write_text(f"milestones: {typed}\nepochs: 0\n")
        ran = offramp("train", "--config", recipe, "--out", tmp_path / "a")
        assert ran.err == f"offramp: {recipe}: epochs must be at least 1, got 0\n"
    for words in (["0.9,0.75"], ["0.9", "--milestones", "0.75"]):
        ran = offramp("train", "--milestones", *words, "--out", tmp_path / "a")
        assert (ran.status, ran.err[-12:]) == (2, "(0.9, 0.75)\n")
    ran = offramp("train", "--milestones", "0.5,x", "--out", tmp_path / "a")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "--milestones: fractions of the run must be numbers such as 0.5,0.75, got 0.5,x" in ran.err


def test_a_run_is_a_folder(offramp, tmp_path):
    (tmp_path / "ok.png").write_text("x")
    ran = offramp("train", *TINY, "--out", tmp_path / "ok.png")
    assert ran.err.splitlines()[-1] == (
        f"offramp: {tmp_path / 'ok.png'} is a file, but a run is a folder; choose another --out"
    )


def test_json_errors_are_json_too(offramp, tmp_path):
    ran = offramp("train", "--method", "muze", "--out", tmp_path / "a", "--json")
    assert ran.status == 2
    assert "muse" in ran.json["error"]
