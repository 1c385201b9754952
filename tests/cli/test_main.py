"""The program as a whole: its help, its exit status, and one sentence for every mistake."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp as package
from offramp.cli import COMPUTING, _overview, app, verb
from offramp.cli._console import ConsoleReporter
from offramp.cli._errors import as_typed, dashed
from offramp.cli._failure import explain
from offramp.config.files import fields
from offramp.lookup import ParameterError, with_parameters

Offramp = Callable[..., Any]
VERBS = (
    *("train", "evaluate", "calibrate", "compare", "sweep", "curves", "deploy", "bench", "report", "export", "predict"),
    *("analyse", "reproduce", "serve", "info", "trust", "nets", "branches", "methods", "data", "recipes"),
)
PROGRAM = "from offramp.cli import main; main()"


def started(*words: str, program: str = PROGRAM, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **more,
    )


@pytest.mark.parametrize("words", [("--help",), ()])
def test_help_names_every_verb(offramp: Offramp, words: tuple[str, ...]) -> None:
    assert {name for name in app() if not name.startswith("-")} == set(VERBS)
    ran = offramp(*words)
    assert ran.status == 0 and not ran.err
    assert all(f"\n  {verb} " in ran.out for verb in VERBS)
    titles = [ran.out.index(f"\n{title}:\n") for title in ("Train", "Exit early", "Ship", "Look up")]
    assert titles == sorted(titles)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "--epochs", "1.5", "--out", "a"), "--epochs takes a whole number, got 1.5"),
        (("train", "--batch_size=2.5", "--out", "a"), "--batch_size takes a whole number, got 2.5"),
        (("info", "--width", "4.5"), "--width takes a whole number, got 4.5"),
        (("info", "--classes", ".5e1x"), "--classes"),
    ],
)
def test_fractions_are_not_rounded_to_whole_numbers(offramp: Offramp, words: tuple[str, ...], says: str) -> None:
    ran = offramp(*words)
    assert ran.status == 2 and says in ran.err and ran.err.count("\n") == 1


def test_whole_numbers_may_have_a_point(offramp: Offramp) -> None:
    assert offramp("info", "--width", "4.0", "--classes", "3", "--json").status == 0


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_explains_every_option(offramp: Offramp, verb: str) -> None:
    ran = offramp(verb, "--help")
    assert ran.status == 0 and (verb == "serve" or "--json" in ran.out)
    assert "--option" not in ran.out


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("predict", "offramp predict [OPTIONS] BUNDLE IMAGES..."),
        ("methods", "offramp methods [OPTIONS] [NAME]"),
        ("train", "offramp train {--out PATH | --recipe NAME} [OPTIONS]"),
        ("export", "offramp export --out PATH [OPTIONS] RUN"),
    ],
)
def test_usage_names_what_is_typed(offramp: Offramp, verb: str, usage: str) -> None:
    assert offramp(verb, "--help").out.splitlines()[0] == f"Usage: {usage}"


def test_help_of_train_is_without_noise_and_complete(offramp: Offramp) -> None:
    out = " ".join(offramp("train", "--help").out.replace("│", " ").split())
    assert "--empty" not in out and "[default: ()]" not in out
    assert all(word in out for word in ("timm:NAME", "python:MODULE:FUNCTION", "hub:OWNER/NAME"))


def test_help_of_compare_lists_no_option_that_it_refuses(offramp: Offramp) -> None:
    listed = {words[1] for line in offramp("compare", "--help").out.splitlines() if len(words := line.split()) > 1}
    assert {"--methods", "--seeds", "--net"} <= listed and not {"--method", "--seed"} & listed


def test_the_overview_says_of_every_verb_what_its_own_help_says() -> None:
    """It is read from the files, without what reads the words of a command."""
    assert _overview.verbs() == {
        name: " ".join((inspect.getdoc(verb(name)) or "").split("\n\n")[0].split()) for name in VERBS
    }
    program = "import sys, offramp.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "offramp.cli._overview" in loaded and not {"cyclopts", "rich", "yaml"} & set(loaded.split())


def test_help_imports_no_torch() -> None:
    program = (
        "import sys\nfrom offramp.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['--version']):\n"
        "    try: main(words)\n"
        "    except SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'PIL', 'lightning_fabric'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    process = started(program=program)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_verb_imports_only_itself() -> None:
    program = (
        "import sys\nfrom offramp.cli import main\n"
        "try: main(['nets', '--json'])\n"
        "except SystemExit as left: assert not left.code\n"
        "own = {name for name in sys.modules if name.startswith('offramp.cli.') and '._' not in name}\n"
        "assert own == {'offramp.cli.lists'}, own"
    )
    process = started(program=program)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_python_runs_the_package() -> None:
    words = [sys.executable, "-m", "offramp", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == package.__version__


def test_a_verb_that_needs_torch_says_so(offramp: Offramp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = offramp("info", "--width", 4)
    assert (ran.status, ran.err) == (
        1,
        "offramp: `offramp info` needs torch, which is not installed: pip install torch\n",
    )


@pytest.mark.parametrize(
    ("message", "parameters", "says"),
    [
        ("holdout must be a share in [0, 1), got 2", ("holdout",), "--holdout must be a share in [0, 1), got 2"),
        (
            "batch_size=7 does not divide over devices=2",
            ("batch_size", "devices"),
            "--batch-size 7 does not divide over --devices 2",
        ),
        ("method.beta_end takes a number, got 'x'", ("method.beta_end",), "--method.beta_end takes a number, got 'x'"),
        (
            "runtime=onnx goes with ms or save=ms",
            ("runtime", "ms", "save"),
            "--runtime onnx goes with --ms or --save ms",
        ),
        ("lr must be lower than lr_backbone", ("lr", "lr_backbone"), "--lr must be lower than --lr-backbone"),
        (
            "out/a.yaml, 'out', my-out and b.out stay; another out",
            ("out",),
            "out/a.yaml, 'out', my-out and b.out stay; another --out",
        ),
        ("data.resize=3, data stays data", ("data.resize",), "--data.resize 3, data stays data"),
        (
            "width=8 and net.width=4 contradict each other",
            ("width", "net.width"),
            "--width 8 and --net.width 4 contradict each other",
        ),
    ],
)
def test_parameters_become_options(message: str, parameters: tuple[str, ...], says: str) -> None:
    assert dashed(message, parameters) == says
    for error in (ParameterError(message, *parameters), with_parameters(OSError(message), *parameters)):
        assert as_typed(error) == says and str(error) == message


def test_version(offramp: Offramp) -> None:
    assert offramp("--version").out.strip() == package.__version__


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("evluate", "runs/a"), 'Did you mean "evaluate"?'),
        (("evaluate",), "RUN is missing: offramp evaluate RUN"),
        (("predict",), "BUNDLE is missing: offramp predict BUNDLE"),
        (("train",), "--out is missing: the folder of the run, such as --out runs/a"),
        (("train", "--out"), "--out needs a value"),
        (
            ("train", "--no-streaming", "--batch_size", "8"),
            "--out is missing: the folder of the run, such as --out runs/a",
        ),
        (("train", "--data", "digits", "--uot=runs/a"), "Unknown option: --uot. Did you mean --out?"),
        (("export", "a", "--otu", "b"), "Unknown option: --otu; the nearest is '--out'"),
        (("export", "a"), "--out is missing: the folder to write, such as --out bundle"),
        (("nets", "resnet81"), "the nearest is 'resnet18'"),
        (("evaluate", "a", "--weigths", "best"), "Did you mean --weights?"),
        (("evaluate", "a", "--weights", "newest"), '"last"'),
        (("evaluate", "a", "b", "c"), "c"),
        (("methods", "muse", "--jsn"), "Did you mean --json?"),
        (("evaluate", "a", "--batch-size", "many"), "many"),
        (("evaluate", "a", "--method.alpha", "3"), "--method.KEY is for train: evaluate takes --data.KEY alone"),
        (("info", "--config", "x.yaml"), "Unknown option: --config"),
    ],
)
def test_words_that_are_not_understood(offramp: Offramp, words: tuple[str, ...], says: str) -> None:
    ran = offramp(*words)
    assert ran.status == 2
    assert says in ran.err and ran.err.startswith("offramp: ") and ran.err.count("\n") == 1
    assert not ran.out


def test_an_error_is_json_too_where_json_was_asked_for(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("evaluate", tmp_path, "--json")
    assert ran.status == 1 and list(ran.json) == ["error"]
    assert f"offramp: {ran.json['error']}\n" == ran.err


def test_where_an_error_comes_from_is_shown_on_request(
    offramp: Offramp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" not in offramp("evaluate", tmp_path).err
    monkeypatch.setenv("OFFRAMP_DEBUG", "1")
    assert "Traceback" in offramp("evaluate", tmp_path).err


def test_a_reader_that_stops_reading_is_no_error_of_ours() -> None:
    with started("nets", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) != 0
    assert not said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said_once() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", PROGRAM, "nets", "--json"]
        ran = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (1, "offramp: standard output cannot be written: No space left on device\n")


def test_a_file_that_cannot_be_written_is_named(offramp: Offramp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = offramp("train", "--epochs", 1, "--width", 4, "--out", tmp_path / "file" / "run")
    assert ran.status == 1 and str(tmp_path / "file") in ran.err and ran.err.count("offramp:") == 1


def bug(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    program = "import offramp.cli as c\ndef app(*_): raise KeyError('a bug\\x1b[31m')\nc.app = app\nc.main(['nets'])"
    command, environment = [sys.executable, "-c", program], {**os.environ, **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_what_nobody_expected_is_one_line_that_says_where() -> None:
    ran = bug()
    assert ran.returncode == 1 and ran.stderr.startswith("offramp: unexpected KeyError: 'a bug\\x1b[31m' (raised at")
    assert "__init__.py:" in ran.stderr and ran.stderr.count("\n") == 1
    assert "Traceback" in bug(OFFRAMP_DEBUG="1").stderr


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 48), lambda: np.empty(1 << 50)], ids=["torch", "numpy"])
def test_too_little_memory_is_no_mistake_of_ours(ask: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        ask()
    text, status = explain(raised.value)
    assert status == 1 and text.startswith("there is not enough memory: ") and "report" not in text


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free."),
            "the GPU has not enough memory: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.; "
            "take a smaller --batch-size, --accumulate 2 or more, --precision bf16",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "the GPU has not enough memory: CUDA error: CUBLAS",
        ),
        (
            RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
            "the GPU failed: CUDA error: device-side assert triggered; an index lay outside its tensor",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "install another, or take --device cpu",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "`nvidia-smi` shows its state"),
        (
            RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set"),
            "leave out --deterministic",
        ),
        (
            RuntimeError(
                "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
                "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because"
            ),
            "or set CUBLAS_WORKSPACE_CONFIG=:4096:8",
        ),
    ],
    ids=["memory", "cublas", "assert", "architecture", "other", "deterministic", "cublas config"],
)
def test_errors_of_a_gpu_are_one_sentence_with_advice(error: RuntimeError, says: str) -> None:
    text, status = explain(error, "train")
    assert status == 1 and says in text and "\n" not in text and "report it" not in text


@pytest.mark.parametrize("name", sorted(COMPUTING | {"predict", "compare", "serve", "sweep"}))
def test_the_advice_names_options_that_the_command_has(name: str) -> None:
    parameters = inspect.signature(verb(name)).parameters
    options = {*parameters, *(fields() if "config" in parameters else ())}
    for message in ("CUDA out of memory.", "CUDA error: no kernel image is available for execution on the device"):
        text, _ = explain(RuntimeError(message), name)
        named = {word.replace("-", "_") for word in re.findall(r"--([a-z-]+)", text)}
        assert named and named <= options, text


def test_parameters_in_notes_become_options(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter(show=False).note("muse on ImageNet: add method.alpha=.1 method.temperature=20")
    assert capsys.readouterr().err == ""
    reporter = ConsoleReporter(show=True)
    reporter.note("muse on ImageNet: add method.alpha=.1 method.temperature=20; the method.alpha of the paper")
    said = capsys.readouterr().err
    assert said == "muse on ImageNet: add --method.alpha .1 --method.temperature 20; the method.alpha of the paper\n"
