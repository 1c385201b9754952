"""--baseline: early exit beside the network trained alone, a run or a checkpoint; others are refused in a sentence."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.early_exit.exit_scores import Rule
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.policy_file import save
from offramp.measure.plain_network import plain_note
from offramp.runs import load_run
from offramp.runs.baseline import Baseline
from offramp.runs.calibrate import _reach
from offramp.runs.goal import Goal
from offramp.study.ledger import append
from offramp.train import checkpoint

Offramp = Callable[..., Any]


@functools.cache
def accuracy_of(run: Path, split: str) -> float:
    trace = load_run(run).trace(split)
    return float((trace.logits[-1].argmax(1) == trace.labels).mean())


def test_evaluate_sets_the_baseline_beside_early_exit(offramp: Offramp, run: Path, plain_run: Path) -> None:
    save(ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4), run / "policy.json")
    ran = offramp("evaluate", run, "--baseline", plain_run, "--json")
    assert ran.status == 0, ran.err
    result, baseline = ran.json, ran.json["baseline"]
    assert baseline["source"] == str(plain_run) and baseline["epoch"] == 2 and baseline["ms"] > 0
    assert baseline["accuracy"] == {split: pytest.approx(accuracy_of(plain_run, split)) for split in ("cal", "test")}
    assert baseline["macs"] == result["macs"][-1] == result["adaptive"]["plain"]["macs"]
    side = result["adaptive"]["baseline"]
    assert side["accuracy"] == baseline["accuracy"]["test"] and side["ms"] > 0
    assert result["adaptive"]["baseline_speedup"] > 0 and set(result["images"]) == {"cal", "test"}
    assert [cost["drop"] for cost in result["at_baseline"]] == [0.0, 0.005]
    assert 0 < result["budgeted_area"] < 1 and len(result["frontier"]) > 2


def test_evaluate_says_what_it_costs_at_the_baselines_accuracy(offramp: Offramp, run: Path, plain_run: Path) -> None:
    save(ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4), run / "policy.json")
    out = offramp("evaluate", run, "--baseline", plain_run).out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert f"baseline {plain_run}: " in out and lines["baseline"] and " than the baseline (median of pairs)" in out
    assert "at its accuracy on cal: " in out and "0.5 points below it on cal: " in out
    assert "plain = final exit" not in out


def test_a_checkpoint_is_a_baseline_and_its_traces_are_kept(
    offramp: Offramp, run: Path, plain_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.pth"
    torch.save({"state_dict": load_file(plain_run / "last.safetensors")}, file)
    baseline = offramp("evaluate", run, "--baseline", file, "--json").json["baseline"]
    expected = {split: pytest.approx(accuracy_of(plain_run, split)) for split in ("cal", "test")}
    assert (baseline["source"], baseline["epoch"], baseline["accuracy"]) == (str(file), None, expected)
    kept = sorted(path.name for path in (run / "traces").glob("baseline-*"))
    assert len(kept) == 2 and kept[0].endswith("-cal.safetensors")
    stamps = [(run / "traces" / name).stat().st_mtime_ns for name in kept]
    assert offramp("evaluate", run, "--baseline", file, "--json").json["baseline"]["accuracy"] == expected
    assert [(run / "traces" / name).stat().st_mtime_ns for name in kept] == stamps


def _other_classes(plain_run: Path, folder: Path) -> Path:
    shutil.copytree(plain_run, folder)
    tensors, about = checkpoint.load_weights(folder / "last.safetensors")
    about["classes"][3] = "three"
    checkpoint.save_weights(folder / "last.safetensors", tensors, about)
    return folder


def test_what_is_no_baseline_is_refused(
    offramp: Offramp, run: Path, plain_run: Path, trained: Path, tmp_path: Path, reconfigure: Callable[..., None]
) -> None:
    moved = Path(shutil.copytree(plain_run, tmp_path / "moved"))
    (moved / "split.safetensors").unlink()
    reconfigure(moved, "split-seed: 0", "split-seed: 1")
    few = load_file(plain_run / "last.safetensors")
    head = next(name for name in few if few[name].ndim == 2)
    save_file({**few, head: few[head][:7].contiguous()}, tmp_path / "few.safetensors")
    refusals = {
        trained: "has 4 exits: name a network that was trained without early exits (--method vanilla)",
        tmp_path / "none": "is neither the folder of a run nor a file of weights",
        _other_classes(plain_run, tmp_path / "named"): f"other classes than {run}: class 3 is 'three', not '3'",
        moved: "has other cal images than",
        tmp_path / "few.safetensors": "has other classes than",
    }
    for baseline, says in refusals.items():
        ran = offramp("evaluate", run, "--baseline", baseline)
        error = ran.err.splitlines()[-1]  # of `moved` it is noted that it has no record of its split
        assert ran.status == 1 and says in error and ran.err.count("\n") == 1 + (baseline == moved), ran.err
        assert str(baseline) in error and "--baseline" in ran.err


def test_a_file_that_holds_no_weights_is_named_by_its_option(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("no weights")
    torch.save({"w": torch.tensor([float("nan")])}, tmp_path / "b.pth")
    torch.save({"w": torch.ones(1)}, tmp_path / "c.pth")
    (tmp_path / "d.safetensors").write_text("no weights")
    for file, says in {"a.pth": "cannot", "b.pth": "finite", "c.pth": "fit", "d.safetensors": "safetensors"}.items():
        ran = offramp("evaluate", run, "--baseline", tmp_path / file)
        assert ran.status == 1 and f"--baseline {tmp_path / file}" in ran.err and says in ran.err, ran.err
        assert "weights=" not in ran.err


def test_a_network_without_early_exits_has_nothing_to_calibrate(offramp: Offramp, plain_run: Path) -> None:
    out = offramp("evaluate", plain_run).out
    assert "no early exits" in out and "offramp calibrate" not in out
    assert "since it has no early exits" in offramp("calibrate", plain_run, "--macs", "0.5").err


def test_without_a_baseline_it_is_said_what_plain_is(offramp: Offramp, run: Path) -> None:
    ran = offramp("evaluate", run, "--json").json
    assert ran["baseline"] is ran["at_baseline"] is ran["frontier"] is None
    assert len(ran["auroc"]) == 4 and all(0 < area < 1 for area in ran["auroc"])
    assert plain_note(ran["accuracy"]) in offramp("evaluate", run).out
    assert plain_note([0.5, 0.6]) == "plain = final exit of this network"
    note = plain_note([0.61, 0.7, 0.6])
    assert "; exit 2 is more accurate than it on test\n(70.00 % against 60.00 %)" in note
    assert all(len(line) <= 80 for line in note.splitlines())


def test_a_network_without_exits_has_a_frontier_of_one_point(offramp: Offramp, plain_run: Path) -> None:
    ran = offramp("evaluate", plain_run, "--frontier", "--json").json
    (point,) = ran["frontier"]
    assert point["accuracy"] == ran["accuracy"][0] and point["costs"]["macs"] == ran["macs"][0]
    assert ran["budgeted_area"] is None


def test_goals_refer_to_the_baseline(offramp: Offramp, run: Path, plain_run: Path) -> None:
    reached = accuracy_of(plain_run, "cal")
    ran = offramp("calibrate", run, "--max-drop", "20%", "--baseline", plain_run, "--json")
    assert ran.status == 0, ran.err
    result = ran.json
    assert result["goal"] == {"max_drop": 0.2, "accuracy": pytest.approx(max(0, reached - 0.2))}
    assert result["expected"]["accuracy"] >= reached - 0.2 and len(result["exit_accuracy"]) == 4
    assert result["baseline"]["accuracy"] == {"cal": pytest.approx(reached)} and result["baseline"]["ms"] is None
    origin = json.loads((run / "policy.json").read_text())["provenance"]
    assert origin["baseline"]["source"] == str(plain_run)
    macs = offramp("evaluate", plain_run, "--json").json["macs"][0] / 1000
    out = offramp("calibrate", run, "--macs", "0.7", "--baseline", plain_run).out
    assert f"baseline {plain_run}: accuracy {100 * reached:.2f} % at {macs:.2f} k MACs" in out
    out = offramp("calibrate", run, "--macs", "0.7").out
    assert "plain = final exit of this network" in out and "baseline" not in out.replace("--baseline", "")


def test_a_share_of_operations_is_one_of_the_baselines() -> None:
    """Of a baseline that costs 40, twice as much as the final exit of the run's own network."""
    labels = np.arange(12) % 3
    logits = np.stack([np.eye(3)[(labels + wrong) % 3] for wrong in (np.arange(12) % 2, 0)]).astype(np.float32)
    costs = {(True, True): [10, 12], (False, True): [20]}
    baseline = Baseline("plain", 1, "", {"cal": 1.0}, macs=40)
    for other, budget in ((None, 14.0), (baseline, 28.0)):
        outcome, goal, _ = _reach(Goal(macs=0.7), logits, labels, costs, Rule(), other)
        assert goal == {"macs": pytest.approx(budget)} and outcome.cost <= budget


def test_goals_that_a_baseline_forbids(offramp: Offramp, run: Path, plain_run: Path) -> None:
    ran = offramp("calibrate", run, "--risk", "5%", "--baseline", plain_run)
    assert ran.status == 2 and "--risk bounds the loss against this network's own final exit" in ran.err
    ran = offramp("calibrate", run, "--target-accuracy", "1", "--baseline", plain_run)
    assert ran.status == 1 and f"; the baseline {plain_run} reaches " in ran.err
    ran = offramp("calibrate", run, "--macs", "0.0001", "--baseline", plain_run)
    assert ran.status == 1 and " of the baseline (" in ran.err


def test_curves_and_report_draw_the_baseline(offramp: Offramp, run: Path, plain_run: Path) -> None:
    ran = offramp("curves", run, "--baseline", plain_run, "--write", run / "curves.csv")
    assert ran.status == 0, ran.err
    drawn = json.loads((run / "curves.json").read_text())["baseline"]
    assert drawn["accuracy"] == pytest.approx(accuracy_of(plain_run, "test")) and drawn["source"] == str(plain_run)
    assert f"baseline {plain_run}" in ran.out and ",baseline,final," in (run / "curves.csv").read_text()
    assert "baseline" in (run / "curves.svg").read_text()
    ran = offramp("report", run, "--images", 0, "--baseline", plain_run, "--json")
    assert ran.status == 0, ran.err
    (numbers,) = ran.json["runs"]
    assert numbers["baseline"]["accuracy"] == drawn["accuracy"] and len(numbers["auroc"]) == 4
    page = (run / "report.html").read_text()
    assert f"baseline {plain_run}, the plain network trained alone" in page and ">AUROC<" in page
    assert offramp("report", run, "--images", 0).status == 0
    assert "plain = final exit of this network" in (run / "report.html").read_text()


def test_bench_times_the_baseline_in_turn(offramp: Offramp, run: Path, plain_run: Path, tmp_path: Path) -> None:
    save(ExitPolicy(thresholds=(0.5,) * 4, enabled=(True,) * 4), run / "policy.json")
    words = ("--batch", 1, "--runtimes", "torch", "--seconds", 0.01, "--baseline", plain_run)
    result = offramp("bench", run, *words, "--json").json
    (macs,) = offramp("evaluate", plain_run, "--json").json["macs"]
    assert result["baseline"] == {"source": str(plain_run), "macs": macs}
    report = result["batches"][0]["runtimes"]["torch"]
    assert report["rivals"]["baseline"]["p50"] > 0 and report["rival_speedup"]["baseline"] > 0
    out = offramp("bench", run, *words).out
    assert f"baseline {plain_run}" in out and "over" in out


def test_compare_reads_costs_from_the_lines_of_a_ledger(
    offramp: Offramp, run: Path, plain_run: Path, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    for each in (run, plain_run):
        line = offramp("evaluate", each, "--frontier", "--json").json
        append(ledger, line)
    result = offramp("compare", "--show", ledger, "--json").json["comparisons"][0]
    assert result["plain"] == "plain = vanilla with the same seed"
    costs = {row["method"]: row for row in result["costs"]}
    assert costs["vanilla"]["at_accuracy"][0]["macs"]["mean"] == line["macs"][0] and costs["vanilla"]["area"] is None
    assert costs["muse"]["area"]["mean"] > 0 and len(costs["muse"]["auroc"]) == 4
    out = offramp("compare", "--show", ledger).out
    assert "plain = vanilla with the same seed" in out and "AUROC of each exit" in out and "-0.5 points" in out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    shown = offramp("compare", "--show", ledger, "--methods", "muse", "--baseline", plain_run, "--json").json
    assert shown["comparisons"][0]["plain"] == f"baseline {plain_run}"
    assert shown["comparisons"][0]["costs"][0]["at_accuracy"] == costs["muse"]["at_accuracy"]
    for baseline, says in (
        (run, "has 4 exits or nothing held out: name a network that was trained without early exits"),
        (plain_run / "last.safetensors", "is a file of weights, and there is no run here whose network it is for"),
    ):
        ran = offramp("compare", "--show", ledger, "--baseline", baseline)
        assert ran.status == 1 and says in ran.err and "--baseline" in ran.err
