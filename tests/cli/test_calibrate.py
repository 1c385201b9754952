"""offramp calibrate: budgets as they are typed, the policy it leaves behind, and that the promise is kept."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.bundle import sessions
from offramp.bundle.manifest import SegmentSpec
from offramp.cli._goal import _macs
from offramp.config import build_data
from offramp.data.loading import Loader
from offramp.early_exit.policy_file import load
from offramp.measure.early_exit_eval import leave_early
from offramp.runs import load_run
from offramp.runs.backends import NEEDS
from offramp.runs.goal import Goal
from offramp.train.checkpoint import load_weights, save_weights

Offramp = Callable[..., Any]


@pytest.mark.parametrize(
    ("typed", "budget"),
    [
        ("0.5", 500.0),
        ("1", 1000.0),
        ("1.0", 1000.0),
        ("1e-1", 100.0),
        ("2", 2.0),
        ("250", 250.0),
        ("250k", 250e3),
        ("250M", 250e6),
        ("0.5M", 0.5e6),
        ("1.5G", 1.5e9),
        ("3e8", 3e8),
    ],
)
def test_budgets_as_they_are_typed(typed: str, budget: float) -> None:
    assert Goal(macs=_macs(typed)).budget(1000.0) == pytest.approx(budget)


@pytest.mark.parametrize("typed", ["", "lots", "M", "250X", "250m", "0", "0M", "-1", "-2M", "nan", "inf", "1,5"])
def test_budgets_that_make_no_sense(typed: str) -> None:
    with pytest.raises(ValueError) as caught:
        _macs(typed)
    says = f"macs takes a share of the plain network's such as 0.5 or 50%, or a count such as 250M, got {typed!r}"
    assert str(caught.value) == says


def test_the_policy_is_written_with_where_it_comes_from(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--macs", "0.8", "--json")
    assert ran.status == 0, ran.err
    result, policy = ran.json, load(run / "policy.json")
    assert tuple(result["thresholds"]) == policy.thresholds and tuple(result["enabled"]) == policy.enabled
    assert result["expected"]["macs"] <= result["goal"]["macs"] == pytest.approx(0.8 * result["plain"]["macs"])
    assert sum(result["expected"]["shares"]) == pytest.approx(1)
    assert (result["split"], result["weights"], result["epoch"]) == ("cal", "last", 2)
    stored = json.loads((run / "policy.json").read_text())["provenance"]
    assert result["computed_on"] == stored["computed_on"] == "cpu"
    assert {key: result[key] for key in stored} == stored
    assert {"goal", "rule", "expected", "plain", "command", "commit", "versions", "hardware"} <= set(stored)


@pytest.mark.parametrize("fraction", ["0.7", *(pytest.param(more, marks=pytest.mark.full) for more in ("0.85", "1"))])
@torch.inference_mode()
def test_the_promise_is_kept_to_the_last_operation(offramp: Offramp, run: Path, fraction: str) -> None:
    promised = offramp("calibrate", run, "--macs", fraction, "--json").json
    loaded = load_run(run)
    assert loaded.policy is not None
    data = build_data(loaded.config)
    for size in (16, 64):
        loader = Loader(data.splits["cal"], data, batch_size=size, augment=False, seed=0)
        # batches said to be larger than they are go untimed
        ran = leave_early(loaded.net, loaded.policy, loader.epoch(0), data.shape, 1000)
        assert ran["macs"] == promised["expected"]["macs"]
        assert ran["shares"] == pytest.approx(promised["expected"]["shares"])
        assert ran["accuracy"] == pytest.approx(promised["expected"]["accuracy"])
        assert ran["plain"]["accuracy"] == pytest.approx(promised["plain"]["accuracy"])


def test_the_old_policy_is_kept(offramp: Offramp, run: Path) -> None:
    offramp("calibrate", run, "--macs", "0.7")
    first = (run / "policy.json").read_text()
    assert not (run / "policy.json.old").exists()
    offramp("calibrate", run, "--macs", "1")
    assert (run / "policy.json.old").read_text() == first != (run / "policy.json").read_text()


def test_a_damaged_policy_is_no_hindrance(offramp: Offramp, run: Path) -> None:
    (run / "policy.json").write_text("{")
    assert offramp("calibrate", run, "--macs", "0.9").status == 0
    assert load(run / "policy.json").exits == 4 and (run / "policy.json.old").read_text() == "{"


def test_the_table_for_a_person(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--macs", "0.8")
    assert ran.status == 0, ran.err
    policy = load(run / "policy.json")
    lines = [line.split() for line in ran.out.partition("expected: ")[0].splitlines() if line]
    rows = [line[2:] for line in lines if line[0] == "exit" and line[1].isdigit()]
    assert [row[0] == "off" for row in rows] == [not on for on in policy.enabled[:-1]]
    assert next(line for line in lines if line[0] == "final")[1] == "all"
    assert "expected: accuracy" in ran.out and "plain: " in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines()[1:])
    assert all(float(row[-1]) > 0 for row in rows if row[0] != "off")  # whoever is on is left at


def test_a_budget_nobody_can_meet_leaves_the_old_policy(offramp: Offramp, run: Path) -> None:
    offramp("calibrate", run, "--macs", "0.9")
    before = (run / "policy.json").read_bytes()
    ran = offramp("calibrate", run, "--macs", "0.01")
    assert ran.status == 1
    assert "no policy is that cheap: --macs 0.01 is 209 MACs; the cheapest costs 0." in ran.err
    assert " of the plain network (" in ran.err
    ran = offramp("calibrate", run, "--macs", "5")
    assert "--macs 5 is 5 MACs, since only values up to 1 are shares of the plain network; the cheapest" in ran.err
    assert (run / "policy.json").read_bytes() == before


def test_the_closest_goal_of_an_error_can_be_typed(offramp: Offramp, run: Path) -> None:
    said = offramp("calibrate", run, "--macs", "0.01").err.rpartition("the cheapest costs ")[2]
    share, count, unit, *_ = said.replace("of the plain network (", "").split()
    assert offramp("calibrate", run, "--macs", share).status == 0, said
    assert offramp("calibrate", run, "--macs", f"{count}{unit}").status == 0, said
    said = offramp("calibrate", run, "--target-accuracy", "100%").err
    best = said.rpartition(" reaches ")[2].removesuffix(" %\n")
    assert offramp("calibrate", run, "--target-accuracy", f"{best}%").status == 0, said


def test_lines_fit_a_terminal(offramp: Offramp, run: Path) -> None:
    for goal in (("--risk", "5%"), ("--risk", "30%", "--delta", "5%"), ("--max-drop", "1", "--never-slower-at", "1,2")):
        lines = offramp("calibrate", run, *goal).out.splitlines()
        assert len(lines) > 8 and all(len(line) <= 80 for line in lines if str(run) not in line), goal


@pytest.mark.parametrize("typed", ["-1", "lots", "nan"])
def test_nonsense_is_refused_by_the_program_too(offramp: Offramp, run: Path, typed: str) -> None:
    ran = offramp("calibrate", run, "--macs", typed)
    assert ran.status == 2 and f"a count such as 250M, got '{typed}'" in ran.err
    assert not (run / "policy.json").exists()


@pytest.mark.parametrize(
    ("goals", "text"),
    [((), "none"), (("--macs", 1, "--risk", "10%"), "--macs and --risk"), (("--delta", 0.1), "none")],
)
def test_exactly_one_goal_is_needed(offramp: Offramp, run: Path, goals: tuple[object, ...], text: str) -> None:
    ran = offramp("calibrate", run, *goals)
    assert ran.status == 2 and ran.err.count("\n") == 1
    says = f"exactly one goal is needed, --macs, --ms, --max-drop, --target-accuracy or --risk; got {text}"
    assert ran.err == f"offramp: {says}\n"


@pytest.mark.parametrize("typed", ["--mcas", "--max-drp"])
def test_a_misspelt_goal_is_told_the_nearest(offramp: Offramp, run: Path, typed: str) -> None:
    ran = offramp("calibrate", run, typed, "1")
    assert ran.status == 2
    nearest = {"--mcas": "--macs", "--max-drp": "--max-drop"}[typed]
    assert ran.err == f"offramp: Unknown option: {typed}. Did you mean {nearest}?\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--ms 0", "--ms must be a positive number of milliseconds per image, got 0.0"),
        ("--max-drop 150%", "--max-drop takes percentage points such as 0.5 or 0.5%, from 0 to below 100, got '150%'"),
        ("--max-drop=-1", "--max-drop takes percentage points such as 0.5 or 0.5%, from 0 to below 100, got '-1'"),
        ("--max-drop 0.05", "--max-drop 0.05 is ambiguous: write 0.05% or 5% (percentage points of accuracy)"),
        ("--risk 5", "--risk 5 is not a share: write 5%, or 0.05"),
        ("--risk 1% --delta 5", "--delta 5 is not a share: write 5%, or 0.05"),
        ("--max-drop few", "--max-drop takes percentage points such as 0.5 or 0.5%, from 0 to below 100, got 'few'"),
        ("--target-accuracy 60", "--target-accuracy 60 is not a share: write 60%, or 0.6"),
        ("--ms 50%", "--ms takes milliseconds per image such as 0.5, not a share, got '50%'"),
        ("--target-accuracy 101%", "--target-accuracy must be a share in (0, 1], such as 0.75, got 1.01"),
        ("--risk 100%", "--risk must be a share in (0, 1), such as 0.01, got 1.0"),
        ("--risk 10% --delta 0", "--delta must be a probability in (0, 1), such as 0.05, got 0.0"),
        ("--macs 1 --delta 0.1", "--delta goes with --risk, which is missing"),
        ("--ms 1 --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--macs 1 --save ms", "--save ms contradicts --macs"),
        (
            "--max-drop 1% --runtime onnx",
            "--runtime onnx is where milliseconds are measured: it goes with --ms, --save ms or --never-slower-at",
        ),
        ("--ms 1 --runtime torch-graph", "--runtime torch-graph is for GPUs, and PyTorch sees none here"),
        ("--macs 1 --temperatures 1,2", "--temperatures must be `fit`, a positive number, or 4 of them"),
        ("--macs 1 --temperatures cold", "one per exit, got 'cold'"),
    ],
)
def test_options_that_make_no_sense(offramp: Offramp, run: Path, words: str, says: str) -> None:
    ran = offramp("calibrate", run, *words.split())
    assert ran.status == 2 and says in ran.err and ran.err.count("\n") == 1
    assert not (run / "policy.json").exists()


def test_an_accuracy_that_no_policy_reaches(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--target-accuracy", "99.99%")
    assert ran.status == 1
    assert "no policy is that accurate on the calibration split: 99.99 % is wanted" in ran.err


@pytest.mark.parametrize("drop", [0, 2])
def test_what_may_be_lost_is_not_exceeded(offramp: Offramp, run: Path, drop: int) -> None:
    result = offramp("calibrate", run, "--max-drop", f"{drop}%", "--json").json
    assert offramp("calibrate", run, "--max-drop", drop, "--json").json["expected"] == result["expected"]
    assert result["expected"]["accuracy"] >= result["plain"]["accuracy"] - drop / 100 - 1e-9
    assert result["expected"]["macs"] <= result["plain"]["macs"]
    assert result["bound"] <= result["expected"]["macs"] + 1e-6


def test_a_target_is_reached_at_the_least_cost(offramp: Offramp, run: Path) -> None:
    plain = offramp("calibrate", run, "--macs", "1", "--json").json["plain"]["accuracy"]
    costs = []
    for part in (0.5, 0.8, 1.0):
        result = offramp("calibrate", run, "--target-accuracy", part * plain, "--json").json
        assert result["expected"]["accuracy"] >= part * plain - 1e-9
        costs.append(result["expected"]["macs"])
    assert costs == sorted(costs)


def test_milliseconds_are_measured_and_kept_to(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--ms", "1000", "--batch-size", "8", "--json")
    assert ran.status == 0, ran.err
    result = ran.json
    assert result["goal"] == {"ms": 1000.0} and result["batch_size"] == 8
    assert 0 < result["expected"]["ms"] < 1000 and result["plain"]["ms"] > 0
    assert result["expected"]["accuracy"] >= result["plain"]["accuracy"]
    saved = offramp("calibrate", run, "--max-drop", "1%", "--save", "ms")
    assert saved.status == 0 and " ms; plain: " in saved.out
    assert offramp("calibrate", run, "--ms", "1e-9").status == 1
    ran = offramp("calibrate", run, "--max-drop", "90%", "--never-slower-at", "1,4", "--json")
    assert ran.status == 0 and ran.json["unit"] == "macs" and set(ran.json["of_plain_ms"]) == {"1", "4"}, ran.err
    assert all(ratio <= 1.02 for ratio in ran.json["of_plain_ms"].values())
    assert "got 0" in offramp("calibrate", run, "--max-drop", "1%", "--never-slower-at", "0").err


@pytest.mark.parametrize(
    "runtime",
    ["torch-bf16", "onnx", *(pytest.param(name, marks=pytest.mark.full) for name in ("torch", "openvino"))],
)
def test_milliseconds_are_those_of_the_runtime_that_is_to_answer(
    offramp: Offramp, run: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime in NEEDS:
        for package in NEEDS[runtime]:
            pytest.importorskip(package)
    seen: set[str] = set()
    opened = sessions.open_segment

    def convolving(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            seen.add(f"torch {module.weight.dtype}")

    def opening(model: bytes, part: SegmentSpec, name: str, threads: int | None = None) -> Any:
        seen.add(name)
        return opened(model, part, name, threads)

    assert offramp("calibrate", run, "--macs", "1").status == 0  # computes the trace
    monkeypatch.setattr("offramp.bundle.latency.open_segment", opening)
    with torch.nn.modules.module.register_module_forward_pre_hook(convolving):
        ran = offramp("calibrate", run, "--max-drop", "1%", "--save", "ms", "--batch-size", "4", "--runtime", runtime)
    assert ran.status == 0, ran.err
    wanted = {"torch": "torch torch.float32", "torch-bf16": "torch torch.bfloat16"}.get(runtime, runtime)
    assert wanted in seen and not seen & ({"onnx", "openvino", "torch torch.bfloat16"} - {wanted})
    origin = json.loads((run / "policy.json").read_text())["provenance"]
    assert (origin["runtime"], origin["batch_size"]) == (runtime, 4) and origin["threads"] > 0
    assert 0 < origin["expected"]["ms"] <= origin["plain"]["ms"]
    assert f"measured in {runtime} at batch 4 on " in ran.out


def test_milliseconds_are_those_of_the_run_s_own_precision_unless_told_otherwise(
    offramp: Offramp, run: Path, reconfigure: Any
) -> None:
    for precision, runtime in {"32": "torch", "bf16": "torch-bf16"}.items():
        if precision != "32":
            reconfigure(run, "precision: '32'", f"precision: {precision}")
        assert offramp("calibrate", run, "--ms", "1000", "--batch-size", "4", "--json").json["runtime"] == runtime


def test_a_runtime_that_is_not_installed_is_named_before_anything_is_exported(
    offramp: Offramp, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDS, "openvino", ("no_such_package",))
    ran = offramp("calibrate", run, "--ms", "1", "--runtime", "openvino")
    assert ran.status == 1
    assert "--runtime openvino is not installed: pip install 'offramp[export,openvino]'" in ran.err


SCORES, ANSWERS = ("margin", "entropy", "patience"), ("exit", "arithmetic", "geometric", "sum")
QUICK = {("margin", "exit"), ("entropy", "arithmetic"), ("patience", "geometric"), ("margin", "sum")}


@pytest.mark.parametrize(
    ("score", "answer"),
    [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.full) for pair in product(SCORES, ANSWERS)],
)
@torch.inference_mode()
def test_every_score_and_answer_does_what_was_promised(offramp: Offramp, run: Path, score: str, answer: str) -> None:
    words = ("--macs", "0.9", "--score", score, "--answer", answer, "--temperatures", "fit")
    ran = offramp("calibrate", run, *words, "--json")
    assert ran.status == 0, ran.err
    promised, loaded = ran.json, load_run(run)
    assert loaded.policy is not None and (loaded.policy.score, loaded.policy.answer) == (score, answer)
    assert list(loaded.policy.temperatures) == promised["temperatures"] != [1.0] * 4
    data = build_data(loaded.config)
    loader = Loader(data.splits["cal"], data, batch_size=32, augment=False, seed=0)
    did = leave_early(loaded.net, loaded.policy, loader.epoch(0), data.shape, 1000)
    assert did["macs"] == promised["expected"]["macs"]
    assert did["shares"] == pytest.approx(promised["expected"]["shares"])
    assert did["accuracy"] == pytest.approx(promised["expected"]["accuracy"])


def test_a_risk_that_can_be_certified_is_promised(offramp: Offramp, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = offramp("calibrate", run, "--risk", "30%", "--delta", "0.1", "--json").json
    built = result["certificate"]
    assert built["certified"] > 0 and built["samples"] + built["tuning"] == result["samples"]
    assert result["expected"]["macs"] <= result["plain"]["macs"] and result["rule"] == "certified path"
    said = offramp("calibrate", run, "--risk", "30%").out
    assert "certified in expectation: at most 30 points" in said or "the plain network is kept" in said


def test_a_risk_that_cannot_be_certified_keeps_the_plain_network_and_says_what_it_takes(
    offramp: Offramp, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    ran = offramp("calibrate", run, "--risk", "0.001", "--delta", "0.05")
    assert ran.status == 0, ran.err
    policy = load(run / "policy.json")
    assert policy.enabled == (False, False, False, True)
    said = " ".join(ran.out.split())  # as one line
    assert "the plain network is kept: a loss of at most 0.1 points with probability 0.95 cannot be certified" in said
    assert "calibration samples would be enough" in said or "no number of samples would be enough" in said
    expected = said[said.index("expected on the ") :]
    assert " certifying samples: accuracy " in expected
    before, after = expected.split("; plain: ")
    assert after.startswith(before[before.index("accuracy ") + 9 :])  # the plain network is the plain network


def test_the_trace_is_computed_once_and_again_for_other_weights(offramp: Offramp, run: Path) -> None:
    first = offramp("calibrate", run, "--macs", "0.9", "--json").json
    path = run / "traces" / "last-cal.safetensors"
    written = path.stat().st_mtime_ns
    assert offramp("calibrate", run, "--macs", "0.9", "--json").json["expected"] == first["expected"]
    assert path.stat().st_mtime_ns == written
    shutil.copy(run / "best.safetensors", run / "last.safetensors")
    tensors, about = load_weights(run / "last.safetensors")
    save_weights(run / "last.safetensors", {name: tensor * 1.01 for name, tensor in tensors.items()}, about)
    offramp("calibrate", run, "--macs", "0.9", "--json")
    assert path.stat().st_mtime_ns > written


def test_a_stored_trace_needs_no_data(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    first = offramp("calibrate", run, "--macs", "0.9", "--json").json
    again = offramp("calibrate", run, "--macs", "0.9", "--data-dir", tmp_path / "nowhere", "--json").json
    assert again["expected"] == first["expected"]


def test_the_best_weights_are_calibrated_if_asked_for(offramp: Offramp, run: Path) -> None:
    result = offramp("calibrate", run, "--macs", "1", "--weights", "best", "--json").json
    assert result["weights"] == "best"
    assert result["epoch"] == json.loads((run / "result.json").read_text())["best"]["epoch"]


def test_a_run_without_a_calibration_split_is_refused(offramp: Offramp, run: Path, reconfigure: Any) -> None:
    reconfigure(run, "holdout: 0.3", "holdout: 0")
    ran = offramp("calibrate", run, "--macs", "0.9")
    assert ran.status == 1
    says = "was trained on everything (holdout 0): there is no split to calibrate on; train it with --holdout 0.1"
    assert says in ran.err
    out = offramp("evaluate", run).out
    assert "no policy: with holdout 0 there are no images" in out and "offramp calibrate" not in out
