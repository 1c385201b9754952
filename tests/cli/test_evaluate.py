"""offramp evaluate: what it prints is what the network does on test, and what is wrong with a run is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_nets import NET
from PIL import Image

from offramp.config import build_data
from offramp.data.loading import Loader
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.policy_file import load, save
from offramp.runs import load_run
from offramp.runs.baseline import Baseline, CostAtBaseline
from offramp.runs.evaluation import EarlyExits, Performance, _at

Offramp = Callable[..., Any]


@torch.inference_mode()
def on_test(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All exits' logits on test, and the labels, computed in one batch."""
    loaded = load_run(run)
    data = build_data(loaded.config)
    split = data.splits["test"]
    (batch,) = Loader(split, data, batch_size=len(split), augment=False, seed=0).epoch(0)
    return loaded.net(batch.inputs).logits, batch.labels


def test_without_a_policy_it_reports_every_exit(offramp: Offramp, run: Path) -> None:
    ran = offramp("evaluate", run, "--json")
    assert ran.status == 0, ran.err
    result = ran.json
    logits, labels = on_test(run)
    assert result["accuracy"] == pytest.approx((logits.argmax(2) == labels).double().mean(1).tolist())
    assert result["ensemble"] == pytest.approx((logits.sum(0).argmax(1) == labels).double().mean().item())
    assert (result["run"], result["split"], result["samples"], result["epoch"]) == (str(run), "test", 359, 2)
    assert result["weights"] == "last" and result["adaptive"] is None
    info = offramp("info", *NET, "--classes", 10, "--channels", 1, "--image-size", 8, "--json").json
    assert (result["macs"], result["macs_cumulative"]) == (info["macs"], info["macs_cumulative"])
    assert result["parameters"] == info["parameters"]["total"]
    assert result["training"]["last"]["epoch"] == 2 and result["config"]["method"] == "muse"
    assert result["provenance"]["command"] and result["provenance"]["hardware"]["threads"] >= 1


def test_the_table_has_a_line_per_exit(offramp: Offramp, run: Path) -> None:
    ran = offramp("evaluate", run)
    assert ran.status == 0, ran.err
    names = [line.split()[0] for line in ran.out.splitlines() if line]
    assert [name for name in names if name in ("exit", "final", "ensemble")] == ["exit"] * 4 + ["final", "ensemble"]
    assert "no policy yet: fit one with `offramp calibrate`" in ran.out
    assert f"{run}: test, 359 samples, epoch 2 (last), on cpu" in ran.out.replace("\n", " ")


def test_the_best_weights_are_those_of_the_best_epoch(offramp: Offramp, run: Path) -> None:
    best = json.loads((run / "result.json").read_text())["best"]["epoch"]
    assert offramp("evaluate", run, "--weights", "best", "--json").json["epoch"] == best
    (run / "best.safetensors").unlink()
    ran = offramp("evaluate", run, "--weights", "best")
    assert ran.status == 1 and "has no best.safetensors: it held nothing out to choose an epoch by, or lost" in ran.err


def test_with_a_policy_it_leaves_early_for_real(offramp: Offramp, run: Path) -> None:
    logits, labels = on_test(run)
    sure = logits.softmax(-1).amax(-1)
    middle = [float(scores.sort().values[150:152].mean()) for scores in sure]
    policy = ExitPolicy(thresholds=(middle[0], 0.0, middle[2], 0.0), enabled=(True, False, True, True))
    save(policy, run / "policy.json")
    taken = torch.where(sure[0] >= middle[0], 0, torch.where(sure[2] >= middle[2], 2, 3))
    ran = offramp("evaluate", run, "--batch-size", 50, "--json")
    assert ran.status == 0, ran.err
    result = ran.json["adaptive"]
    assert result["shares"] == pytest.approx([(taken == exit).double().mean().item() for exit in range(4)])
    answers = logits.argmax(2).gather(0, taken[None])[0]
    assert result["accuracy"] == pytest.approx((answers == labels).double().mean().item())
    assert result["plain"]["accuracy"] == pytest.approx(ran.json["accuracy"][-1])
    assert result["plain"]["macs"] == ran.json["macs"][-1]
    assert result["batch_size"] == 50 and result["ms"] > 0 and result["plain"]["ms"] > 0 and result["speedup"] > 0
    assert result["policy"]["enabled"] == [True, False, True, True]


def test_the_second_table_sets_early_exit_beside_plain(offramp: Offramp, run: Path) -> None:
    save(ExitPolicy(thresholds=(NEVER, 0.0, 0.0, 0.0), enabled=(True, False, False, True)), run / "policy.json")
    ran = offramp("evaluate", run)
    lines = [line.split() for line in ran.out.splitlines() if line]
    assert [line[-1] for line in lines if line[0] in ("exit", "final")][1:] == ["0.00", "off", "off", "100.00"]
    (early,) = (line[2:] for line in lines if line[:2] == ["early", "exit"])
    (plain,) = (line[1:] for line in lines if line[0] == "plain" and line[1] != "=")
    assert early[0] == plain[0]
    assert "early exit, measured at batch size 64 on cpu" in ran.out
    assert " operations, " in ran.out and " (median of pairs)" in ran.out


def test_batches_larger_than_the_split_have_no_time(offramp: Offramp, run: Path) -> None:
    save(ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4), run / "policy.json")
    result = offramp("evaluate", run, "--batch-size", 500, "--json").json["adaptive"]
    assert (result["ms"], result["plain"]["ms"], result["speedup"]) == (None, None, None)
    ran = offramp("evaluate", run, "--batch-size", 500)
    assert ran.status == 0 and "fewer operations" not in ran.out


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("policy.json", "{}", "policy.json is not a policy"),
        ("config.yaml", "- a\n", "config.yaml is damaged: it contains no options"),
        ("config.yaml", "a: [1\n", "config.yaml is damaged: it is not YAML"),
        ("config.yaml", "lr: fast\n", "config.yaml: lr takes a number, got 'fast'"),
        ("config.yaml", "width: 2\nnet.width: 2\nbranch: linear\n", "last.safetensors does not fit the network"),
        ("last.safetensors", "x", "last.safetensors cannot be read as safetensors"),
        ("result.json", "{", "result.json is damaged: it is not JSON"),
    ],
)
def test_what_is_damaged_is_named(offramp: Offramp, run: Path, file: str, text: str, says: str) -> None:
    (run / file).write_text(text)
    ran = offramp("evaluate", run)
    assert ran.status == 1
    assert says in ran.err and ran.err.count("\n") == 1 and str(run) in ran.err


def test_no_run_at_all(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("evaluate", tmp_path / "nowhere", "--json")
    assert ran.status == 1
    assert "is not a run: the folder does not exist (`offramp train --out" in ran.json["error"]


def test_what_is_no_run_is_reported(offramp: Offramp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("b", "a"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("net: resnet18\n")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, says in {
        "file": "it is a file, but a run is a folder",
        "runs": f"it contains runs, name one of them: {tmp_path / 'runs/a'}, {tmp_path / 'runs/b'}",
        "bundle": "it is a bundle (`offramp predict ",
        "empty": f"it has no config.yaml (`offramp train --out {tmp_path / 'empty'}` creates one)",
    }.items():
        for verb in (["evaluate"], ["calibrate", "--macs", "1"])[name == "bundle" :]:
            ran = offramp(*verb, tmp_path / name)
            assert ran.status == 1 and f"{tmp_path / name} is not a run: {says}" in ran.err, ran.err


@pytest.mark.parametrize(
    ("macs", "speedup", "says"),
    [
        (50, 1.2, "2.00x fewer operations, 1.20x faster (median of pairs)"),
        (50, 0.8, "2.00x fewer operations, 1.25x slower (median of pairs)"),
        (50, 1.001, "2.00x fewer operations, as fast as plain (median of pairs)"),
        (125, 0.8, "1.25x more operations, 1.25x slower (median of pairs)"),
    ],
)
def test_slower_is_called_slower(macs: float, speedup: float, says: str) -> None:
    adaptive = EarlyExits({}, 64, [], 0.5, macs, None, Performance(0.5, 100, None), speedup)
    assert adaptive.gain == says


def test_more_operations_than_the_baseline_are_called_more() -> None:
    baseline = Baseline("plain", 1, "", {"cal": 0.5, "test": 0.5}, 100)
    assert "200 MACs on test (2.00x more operations)" in _at(CostAtBaseline(0.0, 0.5, 200, None), baseline)
    assert "50 MACs on test (2.00x fewer operations)" in _at(CostAtBaseline(0.0, 0.5, 50, None), baseline)


def test_a_batch_size_that_makes_no_sense(offramp: Offramp, run: Path) -> None:
    for policy in (False, True):
        if policy:
            save(ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4), run / "policy.json")
        ran = offramp("evaluate", run, "--batch-size", 0)
        assert ran.status == 2 and "--batch-size must be at least 1, got 0" in ran.err


def test_evaluating_adds_a_trace_to_the_run_and_changes_nothing(offramp: Offramp, run: Path) -> None:
    save(ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4), run / "policy.json")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    offramp("evaluate", run, "--json")
    shutil.rmtree(run / "traces")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert load(run / "policy.json").exits == 4


def test_a_policy_of_other_weights_is_reported(offramp: Offramp, run: Path) -> None:
    epoch = load_run(run).about["epoch"]
    policy = ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4)
    save(policy, run / "policy.json", {"weights": "last", "epoch": epoch})
    assert not offramp("evaluate", run, "--json").err
    save(policy, run / "policy.json", {"weights": "best", "epoch": 1})
    ran = offramp("evaluate", run, "--json")
    assert ran.status == 0 and ran.json["adaptive"]
    assert ran.err.startswith("offramp: The policy was fitted on the best weights of epoch 1; these are the last ones")
    assert f"of epoch {epoch}: fit it again with `offramp calibrate {run} --" in ran.err


def pictures(folder: Path, *classes: str) -> Path:
    """Twenty images of each class, in one folder per class."""
    draw = np.random.RandomState(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            Image.fromarray(draw.randint(0, 256, (16, 16)).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_test_images_on_which_the_plain_network_does_worse_are_reported(
    offramp: Offramp, run: Path, reconfigure: Callable[..., None]
) -> None:
    """And the configuration that is printed is that of the training, not that of this machine."""
    reconfigure(run, "device: cpu", "device: cuda")
    policy = ExitPolicy(thresholds=(0.5,) * 4, enabled=(False, False, False, True))
    digest = load_run(run).about["digest"]
    for fitted, warned in ((digest, True), ("of other weights", False)):
        save(policy, run / "policy.json", {"weights_digest": fitted, "plain": {"accuracy": 0.99}, "samples": 300})
        ran = offramp("evaluate", run, "--json")
        assert ran.status == 0 and ran.json["config"]["device"] == "cuda"
        assert ("the plain network is right on 99.0 % of cal (300) but " in ran.err) is warned


def test_data_that_have_changed_since(offramp: Offramp, tmp_path: Path) -> None:
    run, images = tmp_path / "run", pictures(tmp_path / "images", "a", "b")
    words = "--method joint --precision 32 --epochs 1 --batch-size 16"
    ran = offramp("train", *NET, *words.split(), "--data", f"folder:{images}", "--out", run, "--json")
    assert ran.status == 0, ran.err
    assert offramp("evaluate", run, "--json").json["samples"] == 4
    for number in range(20, 40):
        (images / "b" / f"{number}.png").write_bytes((images / "a" / f"{number - 20}.png").read_bytes())
    assert offramp("evaluate", run, "--json").json["samples"] == 6  # not what the stored trace says
    ran = offramp("report", run, "--json")
    assert ran.status == 0 and ran.json["runs"][0]["samples"] == 6
    images = images.rename(tmp_path / "elsewhere")
    assert "does not exist" in offramp("evaluate", run).err
    assert "nowhere does not exist" in offramp("evaluate", run, "--data-dir", tmp_path / "nowhere").err
    (tmp_path / "parent").mkdir()
    assert offramp("evaluate", run, "--data-dir", images, "--json").json["samples"] == 6
    images = images.rename(tmp_path / "parent" / "images")
    assert offramp("evaluate", run, "--data-dir", images.parent, "--json").json["samples"] == 6
    pictures(images, "c")
    ran = offramp("evaluate", run, "--data-dir", images)
    says = f"folder:{images} has other classes than {run} was trained on: class 2 is 'c', not no such class"
    assert ran.status == 1 and says in ran.err


def test_a_comparison_stands_for_its_runs_and_top_5_is_shown(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    for name in ("b", "a"):
        shutil.copytree(run, tmp_path / "compare" / name)
    (tmp_path / "compare" / "comparison.yaml").write_text("net: resnet18\n")
    ran = offramp("evaluate", tmp_path / "compare", "--json")
    assert ran.status == 0, ran.err
    assert [one["run"] for one in ran.json["runs"]] == [str(tmp_path / "compare" / name) for name in ("a", "b")]
    shown = offramp("evaluate", run).out
    top5 = ran.json["runs"][0]["top5"][0]
    assert "top-5 %" in shown and f"{100 * top5:.2f}" in shown and max(map(len, shown.splitlines()[1:])) <= 80
