"""The README's commands run as printed, and its figures are those of the results they come from."""

import json
import re
import shlex
import shutil
from pathlib import Path

import forked
import pytest
from PIL import Image

from offramp.cli import main
from offramp.cli._argv import rewrite
from offramp.cli._options import config_of
from offramp.config import Config, resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (offramp .*)$", README, re.MULTILINE)


def test_first_thirty_lines_show_a_picture_results_and_python():
    head = README.splitlines()[:30]
    assert any(line.startswith("![") for line in head) and any(line.startswith("|") for line in head)
    assert "```python" in head


def test_the_picture_is_that_of_the_ledger(tmp_path):
    drawn = tmp_path / "drawn.svg"
    with pytest.raises(SystemExit) as left:
        words = ["--show", str(ROOT / "results/compare-cifar150.jsonl"), "--write", str(drawn)]
        main(["compare", *words, "--methods", "joint,muse,byot,beed,hdkd"])
    assert not left.value.code
    assert drawn.read_text() == (ROOT / "docs/images/methods-cifar150.svg").read_text()


@pytest.fixture
def five(tmp_path):
    """The five commands, and a folder with photos to run them in."""
    from sklearn.datasets import load_digits

    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(load_digits().images[:3]):
        Image.fromarray((pixels * 15).astype("uint8")).save(tmp_path / "photos" / f"{number}.png")
    block = README.split("```console")[1].split("```")[0]
    commands = re.findall(r"^\$ (offramp .*)$", block, re.MULTILINE)
    assert len(commands) == 5
    return commands


def test_the_five_commands_run_with_a_smaller_network(five, short_resnet18, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    smaller = {"--width 8": "--width 4 --branch linear", "--epochs 10": "--epochs 1", "--macs 0.8": "--macs 1.0"}
    for command in five:
        for printed in [printed for printed in smaller if printed in command]:
            command = command.replace(printed, smaller.pop(printed))
        with pytest.raises(SystemExit) as left:
            main(shlex.split(command)[1:])
        assert not left.value.code, command
        assert capsys.readouterr().out or "train" in command
    assert not smaller, "not in the commands"


@pytest.mark.full
def test_the_five_commands_run_as_printed(five, tmp_path):
    for command in five:
        (ran,) = forked.run_offramp(*shlex.split(command)[1:], cwd=tmp_path)
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
        assert ran.stdout or "train" in command


@pytest.mark.parametrize("command", [command for command in COMMANDS if " train " in command])
def test_every_training_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    from offramp.cli import app

    words = rewrite(shlex.split(command)[1:])
    _, bound, _ = app().parse_args(words, exit_on_error=False, print_error=False)
    config = bound.arguments.get("config", Config())
    assert resolve(config_of(config, bound.arguments.get("option")))


def test_the_short_runs_are_those_of_the_ledger():
    document = (ROOT / "docs/speed.md").read_text()
    lines = [json.loads(line) for line in (ROOT / "results/cifar100-cpu.jsonl").read_text().splitlines()]
    tried = {(line["config"]["method"], line["config"].get("method.alpha")): line for line in lines}
    rows = {("joint", None): "| `joint`,", ("muse", 0.5): "| `muse`,", ("muse", 0.1): "| `muse` with alpha 0.1,"}
    assert tried.keys() == rows.keys()
    for run, line in tried.items():
        cells = [f"{100 * value:.2f}" for value in [*line["accuracy"], line["ensemble"]]]
        row = next(row for row in document.splitlines() if row.startswith(rows[run]))
        assert re.findall(r"\d+\.\d\d", row) == cells


def test_leaving_early_is_told_as_it_was_measured():
    run = json.loads((ROOT / "results/adaptive.jsonl").read_text().splitlines()[-1])
    torch, accuracy = run["verdicts"]["torch"], run["accuracy"]["torch"]
    (beside,) = torch["beside_small"].values()
    faster = [torch["throughput_at_64"], torch["latency_at_1"], beside["throughput_at_64"], beside["latency_at_1"]]
    document = (ROOT / "docs/speed.md").read_text()
    for text in (README, document):
        assert all(f"{value:.2f}" in text for value in (*faster, -torch["points_lost"]))
    assert f"{torch['of_predicted']:.2f}" in document
    for share in (accuracy["adaptive"], accuracy["plain"], accuracy["small runs/c100-joint"]):
        assert f"| {100 * share:.2f} |" in document


def test_the_comparison_of_methods_is_that_of_its_ledger(tmp_path):
    document = tmp_path / "methods.md"
    shutil.copy(ROOT / "docs/methods.md", document)
    words = ["compare", "--show", str(ROOT / "results/compare-cifar150.jsonl"), "--markdown", str(document)]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert not left.value.code
    assert document.read_text() == (ROOT / "docs/methods.md").read_text()
