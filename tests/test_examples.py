"""Every script of examples/ runs on small data, and learns."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import offramp

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED = {"own_training_loop", "own_method", "finetune_timm", "analyse_trace"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_has_a_test_and_a_line_in_the_list() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"({path.name})" in text for path in EXAMPLES.glob("*.py"))


def test_a_training_loop_of_ones_own() -> None:
    losses = load("own_training_loop").main("joint", epochs=2, images=256)
    assert len(losses) == 8 and losses[-1] < losses[0]


def test_a_method_of_ones_own_and_the_analysis_of_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFFRAMP_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(EXAMPLES)
    evaluated = load("own_method").main(str(tmp_path / "run"), epochs=2)
    assert evaluated.config["method"] == "python:own_method" and evaluated.accuracy[-1] > 0.15
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["analyse_trace.py", str(tmp_path / "run")])
    load("analyse_trace").main()
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("exit  accuracy") and len(lines) == 4
    trace = offramp.load_trace(tmp_path / "run", "test")
    accuracy = (trace.logits.argmax(2) == trace.labels).mean(1)
    assert [line.split()[1] for line in lines] == [f"{share:.2%}" for share in accuracy]


@pytest.mark.full
def test_a_model_of_timm_on_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("bright", "dark")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 128, (32, 32, 3)) + (0 if label else 127)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    words = f"--data folder:{tmp_path / 'photos'} --out {tmp_path / 'run'} --epochs 1 --image-size 32"
    monkeypatch.setattr(sys, "argv", ["finetune_timm.py", *words.split()])
    load("finetune_timm").main()
    out = capsys.readouterr().out
    assert "policy.json: fitted on 8 samples of cal" in out and "plain = final exit of this network" in out
