"""What the benchmarks share, and that each still starts; what they measure is no test's business."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())

STEPS = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from workers import work

def steps():
    kept = []
    for number in range(int(sys.argv[1])):
        kept.append(bytearray(b"1" * 2**25))
        print(number, file=open(sys.argv[2], "a"))
        yield

work(steps(), "cpu")
"""

BOSS = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from workers import Worker

worker = Worker(*sys.argv[1:])
print(worker.steps(0), worker.steps(1), worker.steps(3))
worker.close()
print(worker.process.returncode)
"""


def run(folder: Path, steps: int) -> subprocess.CompletedProcess[str]:
    """A worker in a process of another one, as in the benchmarks, which takes 0, 1 and 3 steps and ends."""
    (folder / "steps.py").write_text(STEPS)
    (folder / "boss.py").write_text(BOSS)
    command = [sys.executable, str(folder / "boss.py"), str(folder / "steps.py"), str(steps), str(folder / "taken")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_worker_takes_the_steps_that_it_is_told_and_answers_its_peak_memory(tmp_path: Path) -> None:
    done = run(tmp_path, 9)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    none, one, four = map(float, first.split())
    assert none < one < four and 90 < four - one < 200  # three steps keep 32 MiB each
    assert second == "0" and (tmp_path / "taken").read_text().split() == ["0", "1", "2", "3"]


def test_a_worker_that_ends_early_is_said_so(tmp_path: Path) -> None:
    done = run(tmp_path, 2)
    assert done.returncode == 1 and "a worker ended early; run it with --only NAME to see why" in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_starts(script: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr


@pytest.fixture
def gpu_all(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_all

    return gpu_all


def test_gpu_all_keeps_every_figure_and_no_part_takes_the_time_of_others(
    gpu_all: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "gpu.json", list[Any]()

    def slow(plan: Any) -> Iterator[dict[str, Any]]:
        yield {"first": 1}
        seen.append(json.loads(out.read_text())["slow"])  # what is left if the process is killed now
        with contextlib.suppress(Exception):  # as a library does
            time.sleep(9)
        yield {"second": 2}

    def wrong(plan: Any) -> Iterator[dict[str, Any]]:
        yield {"half": 0.5}
        raise RuntimeError("CUDA error:\nunspecified launch failure")

    parts = {"environment": gpu_all.environment, "slow": slow, "wrong": wrong, "last": lambda plan: iter([{"all": 1}])}
    monkeypatch.setattr(gpu_all, "PARTS", parts)
    monkeypatch.setattr(gpu_all, "BY", {"environment": 0.4, "slow": 0.5})
    gpu_all.main(["--device", "cpu", "--tiny", "--minutes", "0.1", "--out", str(out)])
    ended = json.loads(out.read_text())
    assert ended["environment"]["versions"] and ended["wrong"].pop("traceback")
    assert seen == [{"first": 1}] and all(ended[part].pop("seconds") < 6 for part in parts)
    assert ended["slow"] == {"first": 1, "error": "the time ended"} and ended["last"] == {"all": 1}
    assert ended["wrong"] == {"half": 0.5, "error": "RuntimeError: CUDA error: unspecified launch failure"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_gpu_all_keeps_every_figure_when_it_is_interrupted(
    gpu_all: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    out = tmp_path / "gpu.json"
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts in the background

    def stopped(plan: Any) -> Iterator[dict[str, Any]]:
        yield {"ratios": {"graph / plain": 6.5}}
        signal.raise_signal(number)

    parts = {"steps": stopped, "cifar": lambda plan: iter([{"200_epochs_estimated_minutes": 6.0}])}
    monkeypatch.setattr(gpu_all, "PARTS", parts)
    try:
        with pytest.raises(SystemExit) as end:
            gpu_all.main(["--device", "cpu", "--tiny", "--minutes", "1", "--out", str(out)])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    ended = json.loads(out.read_text())
    assert end.value.code == 130 and ended["interrupted"] and "cifar" not in ended
    assert ended["steps"].pop("seconds") < 60
    assert ended["steps"] == {"ratios": {"graph / plain": 6.5}, "error": "interrupted"}
    assert [each["reached"] for each in ended["targets"]].count(True) == 1


def test_ctrl_c_in_the_resumed_run_of_gpu_all_is_not_taken_for_its_own(
    gpu_all: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def train(*_: Any, **how: Any) -> None:
        calls.append(how)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_all, "train", train)
    with pytest.raises(KeyboardInterrupt):
        next(gpu_all.resume(gpu_all.Plan("cpu", True, tmp_path, {}, time.monotonic() + 60)))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--minutes", "0"), "--minutes must be positive, got 0"),
        (("--minutes", "inf"), "--minutes must be positive, got inf"),
        (("--out", "nowhere/gpu.json"), "--out nowhere/gpu.json cannot be written: No such file or directory"),
        (("--data-dir", "nowhere", "--full"), "--data-dir nowhere contains no folder cifar100; without the option"),
        (("--device", "cuda"), "gpu_all needs a CUDA GPU, and "),
    ],
)
def test_gpu_all_refuses_before_it_measures(
    gpu_all: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_all.torch.cuda, "is_available", lambda: False)
    size = [] if "--full" in words else ["--tiny"]
    with pytest.raises(SystemExit) as end:
        gpu_all.main(["--device", "cpu", *size, *(word for word in words if word != "--full")])
    assert str(end.value).startswith(says) and not list(tmp_path.iterdir())


def test_every_target_is_beside_its_figure(gpu_all: Any) -> None:
    """The worst of all batch sizes counts; what was not measured, or failed, is neither reached nor missed."""
    records = [{"runtimes": {"torch-graph": {"of_predicted": ratio}}} for ratio in (0.99, 0.94)]
    result = {
        "tests": {"failed": ["test_a"]},
        "steps": {"ratios": {"graph / plain": 6.0, "graph / bare graph": 0.96, "eager / plain": 9.0}},
        "cifar": {"200_epochs_estimated_minutes": 7.0},
        "inference": {
            "torch-graph": {"batches": records},
            "onnx-cuda": "ValueError: it fell back to the CPU",
            "never_slower": {"of_plain_ms": {1: 1.01, 64: 1.02}},
        },
        "resume": {"largest_difference": 0.0},
    }
    targets = {each["name"]: each for each in gpu_all.gpu_targets.all_targets(result)}
    estimate = "minutes of 200 epochs, estimated from three, start included"
    expected = {
        "tests marked gpu that failed": (1, "at_most", 0, False),
        estimate: (7.0, "at_most", 8.0, True),
        f"{estimate} (aim)": (7.0, "at_most", 5.5, False),
        "captured training step / plain PyTorch loop": (6.0, "at_least", 6.0, True),
        "captured training step / bare captured step of the network": (0.96, "at_least", 0.95, True),
        "early exit / plain network, time, where exits may be disabled": (1.02, "at_most", 1.02, True),
        "measured / predicted speed-up, torch-graph": (0.94, "at_least", 0.95, False),
        "measured / predicted speed-up, onnx-cuda": (None, "at_least", 0.95, None),
        "largest difference of weights after an interruption": (0.0, "at_most", 0, True),
    }
    for name, (value, kind, limit, reached) in expected.items():
        assert targets[name] == {"name": name, "value": value, kind: limit, "reached": reached}
    for name in targets.keys() - expected.keys():
        assert name.startswith("measured / predicted speed-up, ") and targets[name]["reached"] is None
    failed = {"steps": {"error": "the time ended"}, "inference": {"never_slower": "no"}}
    nothing = gpu_all.gpu_targets.all_targets(failed)
    assert [each["name"] for each in nothing] == list(targets) and {each["value"] for each in nothing} == {None}
    text = gpu_all.gpu_targets.lines([targets["measured / predicted speed-up, torch-graph"], nothing[0]])
    assert text[0] == "measured / predicted speed-up, torch-graph: 0.940 (target: at least 0.95): MISSED"
    assert text[1] == "tests marked gpu that failed: not measured (target: at most 0)"


def test_gpu_all_keeps_the_results_of_tests_that_ended(gpu_all: Any, tmp_path: Path) -> None:
    lines = (
        "import time, warnings",
        "def test_right(): warnings.warn('of another version')",
        "def test_wrong(): assert 1 == 2",
        "def test_slow(): time.sleep(2)",
        "def test_never(): pass",
    )
    (tmp_path / "test_some.py").write_text("\n".join(lines))
    plan = gpu_all.Plan("cpu", True, tmp_path, {}, time.monotonic() + 60)
    assert gpu_all.tested([str(tmp_path), "-k", "right"], plan)["output"] == ""
    result = gpu_all.tested([str(tmp_path), "--session-timeout=1"], plan)
    assert result["counts"] == {"PASSED": 2, "FAILED": 1} and "assert 1 == 2" in result["output"]
    assert [name.partition("::")[2] for name in result["failed"]] == ["test_wrong"] and "1 failed" in result["summary"]


def test_what_tests_of_gpu_all_start_ends_with_them(gpu_all: Any, tmp_path: Path) -> None:
    """Else it would go on using the GPU beside what is measured next."""
    with (tmp_path / "out").open("w") as file:
        gpu_all.bounded(["bash", "-c", "sleep 60 & echo $!; wait"], 1.0, stdout=file)
    pid = (tmp_path / "out").read_text().strip()
    end = time.monotonic() + 60
    while runs(pid) and time.monotonic() < end:  # a killed process takes a moment
        time.sleep(0.01)
    assert pid.isdecimal() and not runs(pid)


def runs(pid: str) -> bool:
    """Whether there is this process, and it has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_measurement_that_fails_leaves_the_others(gpu_all: Any) -> None:
    def wrong() -> float:
        raise KeyError("triton")

    rates = {"offramp": 6.0, "plain": gpu_all.attempt(lambda: 2.0), "bare": gpu_all.attempt(wrong)}
    assert rates["bare"] == "KeyError: 'triton'" and gpu_all.gpu_cifar.ratios(rates) == {"offramp_vs_plain": 3.0}


@pytest.mark.full
def test_gpu_cifar_names_its_targets_beside_what_it_measured(
    gpu_all: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_all.gpu_cifar.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "run"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["provenance"]["device"] == "cpu" and len(result["accuracy"]) == len(result["paper"]["accuracy"])
    assert [each["value"] for each in result["targets"]] == [
        None,
        None,
        result["offramp_vs_plain"],
        result["offramp_vs_bare"],
    ]
    assert result["side_by_side"].keys() == {"offramp", "plain", "bare"}


@pytest.mark.full
def test_gpu_all_measures_every_part(gpu_all: Any, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    gpu_all.main(["--device", "cpu", "--tiny", "--minutes", "4", "--out", str(out)])
    result = json.loads(out.read_text())
    assert not {part: result[part]["error"] for part in gpu_all.PARTS if "error" in result[part]}
    assert result["environment"]["hardware"]["cpu"]
    assert set(result["steps"]["images_per_second"]) == {"eager", "graph", "bare graph", "plain"}
    measured = [each["name"] for each in result["targets"] if each["value"] is not None]
    assert len(measured) == 7 and "measured / predicted speed-up, torch" in measured
    assert result["resume"]["equal"] and result["hdkd"]["steps_of_joint"] > 1
    assert [each["batch"] for each in result["inference"]["torch"]["batches"]] == [1, 4]
    assert set(result["inference"]["never_slower"]["of_plain_ms"]) == {"1", "4"}
    assert max(result["inference"]["never_slower"]["expected"].values()) <= 1.02


@pytest.mark.full
def test_train_models_measures_networks_and_epochs() -> None:
    words = ["--tiny", "--minutes", "0.1", "--networks", "tf_efficientnet_lite0", "--json"]
    command = [sys.executable, str(BENCHMARKS / "train_models.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps, epochs = map(json.loads, done.stdout.splitlines())
    assert len(steps["ms"]) == 5 and steps["precision"] in ("32", "bf16", "bf16-dense")
    assert set(epochs["end_to_end"]) == {"timm", "offramp", "offramp streaming"} and epochs["provenance"]["hardware"]


@pytest.mark.full
def test_what_limits_training_on_large_images_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)
    import gpu_imagenet

    gpu_imagenet.main(["--device", "cpu", "--tiny", "--seconds", "0.05", "--net", "resnet18", "--json"])
    result = json.loads(capsys.readouterr().out)
    speeds = result["images_per_second"]
    assert set(speeds) == {*gpu_imagenet.PARTS, "train"} and result["device"] == "cpu"
    assert speeds[result["limited_by"]] == min(speeds[name] for name in gpu_imagenet.PARTS)
    assert result["train_vs_limit"] == pytest.approx(speeds["train"] / speeds[result["limited_by"]])
