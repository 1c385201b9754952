"""offramp compare: the same runs as `train` makes, however often it is stopped; what fails or does not fit is named."""

import contextlib
import fcntl
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from cli_nets import NET
from safetensors.torch import load_file

from offramp.cli._compare_progress import last_epoch
from offramp.cli._parse import parse_methods, parse_seeds
from offramp.config import Config, flat, resolve, unflat
from offramp.engine.local import locked_folder, reason
from offramp.lookup import ParameterError
from offramp.runs import packing
from offramp.runs.compare import compare
from offramp.runs.run_entries import Entry, entries, folder_name, inputs_of, shared_by
from offramp.runs.train_all import job_of
from offramp.study.ledger import append, common
from offramp.train.run_dir import read_config

pytestmark = pytest.mark.timeout(900)  # many processes, each of which imports torch
Offramp = Callable[..., Any]
RECIPE = [*NET, "--data", "digits", "--epochs", 4, "--batch-size", 64, "--precision", 32]
RECIPE += ["--checkpoint-every", 3]


def words(methods: str, seeds: str, out: Path, *more: object) -> list[str]:
    values = ["compare", *RECIPE, "--methods", methods, "--seeds", seeds, "--out", out, *more]
    return [str(word) for word in values]


def start(folder: Path, words: list[str]) -> forked.Program:
    """The program in a process of its own; what it says goes into a file."""
    return forked.start(*words, out=folder / "said")


def wait_for(what: Callable[[], Any], process: forked.Program) -> None:
    end = time.monotonic() + 300
    while not what():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def steps(out: Path) -> int:
    """The newest checkpoint of any run."""
    return max((int(path.name[5:]) for path in out.glob("*/checkpoints/step-*")), default=0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None], forked_origin: None
) -> tuple[Path, str, int]:
    """A comparison of one run that was told to stop, then one of two runs that was killed, and finished the third time.

    Answers its folder, what the first one said, and its exit status.
    """
    folder = tmp_path_factory.mktemp("compare")
    out = folder / "out"
    process = start(folder, words("joint", "0", out))
    wait_for(lambda: steps(out), process)
    process.send_signal(signal.SIGINT)
    status, said = process.wait(60), (folder / "said").read_text()
    reached = steps(out)
    process = start(folder, words("joint,byot", "0", out, "--jobs", 2))
    wait_for(lambda: steps(out) > reached, process)
    process.kill()
    process.wait(60)
    succeed(*words("joint,byot", "0", out, "--jobs", 2, "--json"))
    return out, said, status


@pytest.fixture
def finished(stopped: tuple[Path, str, int], tmp_path: Path) -> Path:
    """A copy of the finished comparison, for tests that add to it; runs name their folder, so the ledger stays true."""
    return Path(shutil.copytree(stopped[0], tmp_path / "out"))


def test_ctrl_c_saves_every_run(stopped: tuple[Path, str, int]) -> None:
    out, said, status = stopped
    assert status == 130
    assert "every run saves itself" in said and f"saved in {out}; the same command continues" in said
    log = (out / "logs/joint-seed-0.log").read_text()
    assert "--resume continues" in log and "continuing at epoch" in log


def test_stopped_killed_and_resumed_equals_train_to_the_bit(
    offramp: Offramp, stopped: tuple[Path, str, int], tmp_path: Path
) -> None:
    assert offramp("train", *RECIPE, "--method", "joint", "--seed", 0, "--out", tmp_path / "a", "--json").status == 0
    one, other = (load_file(run / "last.safetensors") for run in (tmp_path / "a", stopped[0] / "joint-seed-0"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    ours, theirs = (run / "config.yaml" for run in (tmp_path / "a", stopped[0] / "joint-seed-0"))
    assert ours.read_text() == theirs.read_text()


def test_the_ledger_holds_what_evaluate_prints(offramp: Offramp, stopped: tuple[Path, str, int]) -> None:
    kept = {line["config"]["method"]: line for line in lines(stopped[0] / "results.jsonl")}
    assert set(kept) == {"joint", "byot"}
    for method, line in kept.items():
        printed = offramp("evaluate", stopped[0] / f"{method}-seed-0", "--frontier", "--json").json
        timed = {"provenance": 0, "frontier": 0}
        assert {**line, **timed} == {**printed, **timed} and len(line["frontier"]) == len(printed["frontier"]) > 1
        assert (line["weights"], line["split"], line["epoch"]) == ("last", "test", 4)
        assert line["training"]["provenance"]["command"].startswith("offramp train --config ")


def test_a_finished_comparison_trains_nothing(offramp: Offramp, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    ran = offramp(*words("joint,byot", "0", finished))
    assert ran.status == 0, ran.err
    assert "2 runs of 4 epochs, 2 of them finished before" in ran.err
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    rows = [line.split() for line in ran.out.splitlines()]
    measured = {line["config"]["method"]: line for line in lines(finished / "results.jsonl")}
    cells = {
        name: [f"{100 * x:.2f}" for x in [*result["accuracy"], result["ensemble"]]] for name, result in measured.items()
    }
    assert ["joint", "one", "seed", *cells["joint"]] in rows and ["byot", "one", "seed", *cells["byot"]] in rows
    assert [line for line in ran.out.splitlines() if len(line) > 80] == []
    other = lines(finished / "results.jsonl")[0]
    append(finished / "results.jsonl", {**other, "config": {**other["config"], "lr": 0.7}})
    (result,) = offramp(*words("joint,byot", "0", finished, "--json")).json["comparisons"]
    assert [row["method"] for row in result["methods"]] == ["joint", "byot"]


def test_a_run_that_the_ledger_has_is_not_trained_again_elsewhere(
    offramp: Offramp, finished: Path, tmp_path: Path
) -> None:
    elsewhere, ledger = tmp_path / "elsewhere", finished / "results.jsonl"
    ran = offramp(*words("joint,byot", "0", elsewhere, "--ledger", ledger))
    assert ran.status == 0, ran.err
    assert f"joint seed 0: has its line in {ledger}; to train it again, choose another ledger" in " ".join(
        ran.err.split()
    )
    assert "2 runs of 4 epochs, 2 of them finished before" in ran.err and not list(elsewhere.glob("*/*.safetensors"))
    entry = Entry("joint", resolve(Config()), elsewhere / "joint-seed-0")
    assert job_of(entry, elsewhere, ledger, print) is not None, "of another configuration"
    (finished / "joint-seed-0/result.json").unlink()
    run = finished / "joint-seed-0"
    same = Entry("joint", unflat(read_config(run), str(run)), run)
    assert job_of(same, finished, ledger, print) is not None, "a run that was begun goes on"


def test_a_run_is_given_all_that_it_was_asked_for(tmp_path: Path) -> None:
    config = resolve(Config(data_dir=tmp_path, checkpoint_every=7, tensorboard=True, device="cpu"))
    run = tmp_path / "joint-seed-0"
    (tmp_path / "results.jsonl").touch()  # an empty ledger is one, too
    job = job_of(Entry("joint", config, run), tmp_path, tmp_path / "results.jsonl", print)
    assert job is not None
    place = ["--data-dir", str(tmp_path)]
    train = ["train", "--config", str(run / "config.yaml"), "--out", str(run), "--resume", *place]
    assert job.commands == [
        [*train, "--checkpoint-every", "7", "--tensorboard"],
        ["evaluate", str(run), *place, "--device", "cpu", "--frontier", "--json"],
    ]


def test_more_seeds_and_methods_are_added_and_what_fails_stops_nobody(
    offramp: Offramp, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "WORTH", 0)
    monkeypatch.setattr(packing, "candidates", lambda *limits: [1, 2])  # though every run has one thread here
    # beta times the distance of features is no number any more after a step or two
    ran = offramp(*words("muse(beta_begin=1e30,beta_end=1e30),joint", "1", finished, "--json"))
    assert ran.status == 1
    chosen = json.loads((finished / "logs/packing.json").read_text())
    assert chosen["jobs"] in (1, 2) and set(chosen["seconds_per_step"]) == {"1", "2"}
    assert not list(finished.glob("logs/packing-*"))
    (failed,) = ran.json["failed"]
    assert failed["run"] == "muse(beta_begin=1e+30,beta_end=1e+30) seed 1" and " at step " in failed["reason"]
    (result,) = ran.json["comparisons"]
    joint, byot = result["methods"]
    assert (joint["method"], joint["seeds"], byot["method"], byot["seeds"]) == ("joint", [0, 1], "byot", [0])
    assert byot["pairs"] == [0] and byot["interval95"] == [None] * 5 and all(joint["deviation"])
    assert len(lines(finished / "results.jsonl")) == 3


def test_show_and_markdown_come_from_the_ledger_alone(offramp: Offramp, finished: Path, tmp_path: Path) -> None:
    for path in finished.glob("*-seed-*"):
        shutil.rmtree(path)
    ledger = finished / "results.jsonl"
    ran = offramp("compare", "--show", ledger, "--markdown", tmp_path / "x.md", "--baseline", "byot")
    assert ran.status == 0, ran.err
    assert "difference to byot with the same seeds" in ran.out
    text = (tmp_path / "x.md").read_text()
    assert "| `joint` | one seed |" in text and "Difference to `byot`" in text
    more = ["--metric", "top5", "--write", f"{tmp_path / 'x.csv'},{tmp_path / 'x.tex'},{tmp_path / 'x.svg'}"]
    ran = offramp("compare", "--show", ledger, *more, "--json")
    assert ran.status == 0 and len(ran.json["files"]) == 3, ran.err
    printed = {line["config"]["method"]: line["top5"] for line in lines(ledger)}
    (result,) = ran.json["comparisons"]
    assert {row["method"]: row["mean"] for row in result["methods"]} == printed and result["metric"] == "top5"
    wrong = offramp("compare", "--show", ledger, "--baseline", "biot")
    assert wrong.status == 2 and f"--baseline biot is not in {ledger}: the nearest is 'byot'" in wrong.err


def test_a_baseline_that_does_not_exist_is_refused_before_training(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp(*words("joint,byot", "0", tmp_path / "out", "--baseline", "biot"))
    assert ran.status == 2, ran.err
    assert "--baseline biot is neither a method of this comparison nor a path; the nearest is 'byot'" in ran.err
    assert not list((tmp_path / "out").glob("*-seed-*"))


def test_an_unknown_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="metric must be top1 or top5, got top9"):
        compare(Config(data="digits", width=8, epochs=1), methods=["joint"], out=tmp_path / "out", metric="top9")
    assert not (tmp_path / "out").exists()


def test_another_configuration_is_refused_by_the_option_that_differs(offramp: Offramp, finished: Path) -> None:
    before = (finished / "comparison.yaml").read_bytes()
    ran = offramp(*words("joint", "0", finished, "--lr", 0.05))
    assert ran.status == 1
    assert f"{finished} contains a comparison with another configuration: lr is 0.1 there, not 0.05; nothing" in ran.err
    more = offramp(*words("joint", "0", finished, "--clip", 1, "--ema", 0.5))
    assert "clip is 0.0 there, not 1.0 (and 1 more)" in more.err
    assert (finished / "comparison.yaml").read_bytes() == before
    (finished / "comparison.yaml").write_text("- a\n")
    assert "comparison.yaml is damaged: it contains no options" in offramp(*words("joint", "0", finished)).err
    (finished / "comparison.yaml").write_text("a: [\n")
    assert "comparison.yaml is damaged: it is not YAML" in offramp(*words("joint", "0", finished)).err


def test_a_folder_of_something_else_is_left_alone(offramp: Offramp, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    ran = offramp(*words("joint", "0", tmp_path))
    assert ran.status == 1 and f"{tmp_path} is not empty and does not contain an offramp comparison" in ran.err
    ran = offramp(*words("joint", "0", tmp_path / "thesis.txt"))
    assert ran.status == 1 and "thesis.txt is not a folder" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "joint,muze"], "unknown method 'muze'; the nearest is 'muse'"),
        (["--methods", "muse(alhpa=1)"], "unknown parameter of method muse 'alhpa'; the nearest is 'alpha'"),
        (["--methods", "muse(alpha=much)"], "--method.alpha takes a number, got 'much'"),
        (["--methods", "muse(alpha=0.1"], "--methods takes names such as joint,muse(alpha=0.1), got 'muse(alpha=0.1'"),
        (["--methods", "muse(0.1)"], "--methods muse(0.1): '0.1' is not KEY=VALUE"),
        (["--methods", "joint,,muse"], "--methods takes names such as"),
        (["--methods", "muse,muse(alpha=0.5)"], "--methods names muse twice"),
        (["--methods", "joint", "--seeds", "0,1,0"], "--seeds 0,1,0 names a seed twice"),
        (["--methods", "joint", "--seeds", "0..3"], "--seeds takes comma-separated whole numbers from 0"),
        (["--methods", "joint,muse", "--method.alpha", "0.1"], "write it with its method, --methods 'NAME(alpha=0.1)'"),
        (["--methods", "joint", "--jobs", "0"], "--jobs must be auto or at least 1, got 0"),
        (
            ["--methods", "joint", "--devices", "2", "--batch-size", "2"],
            "--devices 2 is for train: each of several runs trains in one process; omit it, --jobs N trains N",
        ),
        (["--methods", "joint", "--grid", "devices=1,2"], "--devices 2 is for train: each of several runs"),
        (["--methods", "joint,hdkd", "--holdout", "0"], "hdkd: this method learns from the val split while it trains"),
        (
            ["--methods", "joint,l2w", "--optimizer", "adamw"],
            "l2w: this method looks ahead with the optimizer's own step",
        ),
        (["--methods", "joint,byot(alpha=7)"], "alpha"),
        (
            ["--methods", "joint", "--show", "x.jsonl"],
            "shows runs of the ledger: omit --out",
        ),
        (["--show", "x.jsonl", "--seeds", "7", "--ledger", "y.jsonl"], "omit --out and --ledger and --seeds"),
        (["--methods", "joint", "--seed", "3"], "take --seeds (comma-separated), not --seed"),
        (["--methods", "joint", "--grid", "width=4,8"], "--grid width and --width set the same option"),
        (["--methods", "joint", "--lr", "1", "--grid=--lr=0.1,0.2"], "--grid lr and --lr set the same option"),
        (["--method", "joint"], "take --methods (comma-separated), not --method"),
        (
            ["--methods", "l2w", "--batch-size", "3"],
            "l2w: this method divides every batch into 2: --batch-size must be",
        ),
        (["--methods", "hdkd(weights=1,1,-5)"], "weights must be finite and, with clamp, at least 0"),
        (["--methods", "joint", "--ledger", "."], "--ledger . is not a file"),
        (["--methods", "joint", "--markdown", __file__], "was not changed: the table is written between a line"),
        (["--methods", "joint", "--write", "x.doc"], "--write takes files ending in .csv, .tex, .svg, .pdf or .png"),
        ([], "compare needs --methods and --out"),
        (["--methods", "joint", "--job", "2"], "Did you mean --jobs?"),
    ],
)
def test_mistakes_get_one_clear_sentence_and_start_nothing(
    offramp: Offramp, tmp_path: Path, words: list[str], says: str
) -> None:
    ran = offramp("compare", "--width", 4, "--epochs", 1, "--out", tmp_path / "a", *words)
    assert ran.status in (1, 2)
    assert says in ran.err and ran.err.splitlines()[-1].startswith("offramp: ")
    assert not (tmp_path / "a").exists()


def test_long_names_are_told_apart_in_80_columns(offramp: Offramp, tmp_path: Path) -> None:
    line = {
        "config": {"net": "resnet18", "branch": "sketch", "data": "digits", "epochs": 1, "seed": 0},
        "split": "test",
        "weights": "last",
        "accuracy": [0.5, 0.25],
        "ensemble": 0.75,
    }
    values = [("muse", 0.1), ("muse", 0.3), ("byot", 0.2)]
    for number, (method, alpha) in enumerate(values):
        config = {**line["config"], "method": method, "method.alpha": alpha}
        append(tmp_path / "x.jsonl", {**line, "config": config, "accuracy": [0.1 * number, 0.25]})
    ran = offramp("compare", "--show", tmp_path / "x.jsonl")
    assert ran.status == 0 and max(map(len, ran.out.splitlines())) <= 80
    said = [row.split() for row in ran.out.splitlines() if row.startswith(("muse", "byot"))]
    assert [row[:2] for row in said] == [["muse", "(1)"], ["muse", "(2)"], ["byot", "(3)"]] + [
        [method, f"({number}):"] for number, (method, _) in enumerate(values, 1)
    ]
    assert [row[2] for row in said[3:]] == [f"{method}(alpha={alpha})" for method, alpha in values]
    assert "no differences: no method has a seed in common with the baseline joint" in ran.out
    assert (
        "no differences" not in offramp("compare", "--show", tmp_path / "x.jsonl", "--baseline", "byot(alpha=0.2)").out
    )


def test_methods_and_their_parameters_are_read() -> None:
    assert parse_methods("joint, eed(teachers=0,-1,beta=0) ,muse(alpha=.1)") == [
        ("joint", {}),
        ("eed", {"teachers": "0,-1", "beta": "0"}),
        ("muse", {"alpha": ".1"}),
    ]
    assert parse_seeds("0, 2,10") == [0, 2, 10]


def test_folders_have_plain_names() -> None:
    assert folder_name("muse(alpha=0.1,beta_begin=1e-06)", 3) == "muse-alpha=0.1,beta_begin=1e-06-seed-3"
    assert folder_name("x(path=../a b)", 0) == "x-path=.._a_b-seed-0"


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    said: list[str] = []
    with (tmp_path / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(ValueError, match="another `offramp compare` or `reproduce` is running in"),
            contextlib.ExitStack() as stack,
        ):
            stack.enter_context(locked_folder(tmp_path / ".lock", 0.2, said.append))
    assert len(said) == 1 and "waiting for runs that are still saving" in said[0]
    with locked_folder(tmp_path / ".lock", 0.2, said.append):
        pass


def test_progress_is_read_from_the_metrics(tmp_path: Path) -> None:
    assert last_epoch(tmp_path) == (0, "")
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n{"kind": "epoch", "epoch": 0, "val_accuracy": [0.1, 0.1')
    assert last_epoch(tmp_path) == (0, ""), "a line that is still being written"
    path.write_text('{"kind": "epoch", "epoch": 0, "val_accuracy": [0.1, 0.115]}\n{"kind": "step", "step": 2}\n')
    assert last_epoch(tmp_path) == (1, "10.0 11.5")
    with path.open("a") as file:
        file.write('{"kind": "epoch", "epoch": 11, "val_accuracy": null}\n')
    assert last_epoch(tmp_path) == (12, "")


def test_a_run_that_is_killed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nofframp: no room\n")
    assert reason(tmp_path / "log", -9) == "it was killed by signal 9"
    assert reason(tmp_path / "log", 1) == "no room"


def test_a_grid_trains_every_combination_and_compares_within_it(
    offramp: Offramp, tmp_path: Path, forked_origin: None
) -> None:
    out = tmp_path / "out"
    short = [*NET[:2], "--data", "digits", "--epochs", 1, "--batch-size", 512, "--precision", 32, "--holdout", 0.5]
    values = ["compare", *short, "--methods", "joint", "--out", out, "--jobs", 2, "--json"]
    first = offramp(*values, "--grid", "branch=linear,byot", "--grid", "lr=0.1")
    assert first.status == 0
    runs = sorted(path.name for path in out.iterdir() if path.is_dir() and path.name != "logs")
    assert runs == ["branch=byot,lr=0.1,joint-seed-0", "branch=linear,lr=0.1,joint-seed-0"]
    assert sorted(one["common"]["branch"] for one in first.json["comparisons"]) == ["byot", "linear"]
    again = offramp(*values, "--grid", "branch=linear", "--grid", "lr=0.1")
    assert again.status == 0 and len(again.json["comparisons"]) == 1
    assert len(lines(out / "results.jsonl")) == 2
    other = offramp(*values, "--grid", "branch=linear")
    assert other.status and "contains a comparison with another configuration" in other.out


def test_runs_of_a_grid_differ_in_its_axes_alone(tmp_path: Path) -> None:
    grid = {"net": ["resnet18", "resnet34"], "net.width": ["4"], "lr": [0.1, 0.05]}
    built = entries(Config(epochs=3), [("joint", {}), ("muse", {"alpha": 0.1})], [0, 1], tmp_path, grid)
    assert len(built) == len({entry.folder for entry in built}) == 16
    assert built[0].name == "net=resnet18,net.width=4,lr=0.1 joint seed 0"
    assert built[0].folder.name == "net=resnet18,net.width=4,lr=0.1,joint-seed-0"
    assert [entry.config.seed for entry in built] == [0] * 8 + [1] * 8
    assert {(one.config.net, one.config.net_options["width"], one.config.lr, one.config.epochs) for one in built} == {
        (net, 4, lr, 3) for net in ("resnet18", "resnet34") for lr in (0.1, 0.05)
    }
    shared = shared_by(built, grid)
    assert shared["grid"] == ["lr", "net", "net.width"] and shared["epochs"] == 3
    assert not [key for key in shared if key.startswith("net") or key == "lr"]
    assert shared_by(built[:1]) == common(flat(built[0].config))


def test_runs_with_and_without_pretrained_weights_prepare_images_for_themselves(tmp_path: Path) -> None:
    config = Config(net="timm:test_resnet", exits=2, data="cifar100")
    plain, pretrained = entries(config, [("joint", {})], [0], tmp_path, {"pretrained": [False, True]})
    assert inputs_of(plain.config) != inputs_of(pretrained.config)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("net", "--grid takes an option with its values, such as net=resnet18,resnet34, got 'net'"),
        ("method=joint,muse", "--grid cannot vary method: methods and seeds have arguments of their own"),
        ("netz=a,b", "unknown key 'netz'; the nearest is 'net'"),
        ("lr=0.1,0.1", "--grid lr needs values, each once, got 0.1,0.1"),
        ("epochs=one,2", "epochs"),
        ("net=resnet18,resnet19", "unknown net 'resnet19'; the nearest is"),
    ],
)
def test_mistakes_in_a_grid_are_named(word: str, said: str, offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("compare", "--methods", "joint", "--out", tmp_path / "out", "--grid", word)
    assert ran.status == 2 and said in ran.err and ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
