"""A run continues on another kind of device only where that is asked for, and with that device's settings."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.config import Config, resolve
from offramp.runs.device_change import change, continued, device_of_run, on_device_of
from offramp.runs.reporting import Silent
from offramp.runs.train import train
from offramp.train import fastest as measured
from offramp.train.fastest import Settings
from offramp.train.run_dir import read_config

CPU = Config(device="cpu", precision="auto")
ON_GPU = {"device": "cuda", "precision": "bf16", "memory-format": "contiguous", "threads": 1, "graph": True}


def test_the_settings_of_the_run_on_its_kind_of_device() -> None:
    stored = {**ON_GPU, "device": "cpu", "precision": "bf16-dense"}
    here = continued(CPU, resolve(CPU), stored, Path("run"))
    assert (here.precision, here.memory_format, here.threads, here.graph) == ("bf16-dense", "contiguous", 1, True)
    given = dataclasses.replace(CPU, precision="32", threads=2, graph=False)
    here = continued(given, resolve(given), stored, Path("run"))
    assert (here.precision, here.memory_format, here.threads, here.graph) == ("32", "contiguous", 2, False)
    old = {"device": "cpu", "precision": "32"}  # before there were the others
    here = continued(CPU, resolve(CPU), old, Path("run"))
    assert (here.precision, here.memory_format, here.threads, here.graph) == ("32", "auto", None, False)


@pytest.mark.parametrize("stored", ["bf16", "32", "tf32", "16"])
def test_the_settings_of_the_device_where_it_is_another_one(stored: str) -> None:
    here = continued(CPU, resolve(CPU), {**ON_GPU, "precision": stored}, Path("run"))
    assert here == resolve(CPU)
    given = dataclasses.replace(CPU, precision="bf16-dense", memory_format="contiguous")
    here = continued(given, resolve(given), {**ON_GPU, "precision": stored}, Path("run"))
    assert (here.precision, here.memory_format, here.threads) == ("bf16-dense", "contiguous", None)


def test_a_gpu_decides_about_the_graph_of_a_run_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    asked = Config(device="cuda")
    stored = {"device": "cpu", "precision": "bf16-dense", "memory-format": "contiguous", "threads": 2}
    here = continued(asked, resolve(asked), stored, Path("run"))
    assert (here.device, here.precision, here.memory_format, here.threads) == ("cuda", "bf16", "auto", None)
    assert here.graph is None


def test_nobody_asked() -> None:
    resolved = dataclasses.replace(resolve(CPU), device="cpu")
    says = "it would continue on cpu, with other numerical results: add device=cpu if that is intended"
    with pytest.raises(ValueError, match=re.escape(says)):
        continued(
            dataclasses.replace(CPU, device="auto"), resolved, {"device": "cuda", "precision": "bf16"}, Path("run")
        )


def test_a_finished_run_is_opened_anywhere() -> None:
    opened = device_of_run(CPU, resolve(CPU), ON_GPU)
    assert (opened.device, opened.precision, opened.memory_format) == ("cuda", "bf16", "contiguous")
    other = dataclasses.replace(CPU, precision="32")
    assert device_of_run(other, resolve(other), ON_GPU).precision == "32"  # which is refused as another run


def test_the_configuration_names_the_new_device_and_its_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{json.dumps({**ON_GPU, 'lr': 0.3})}\n")
    config: Any = dataclasses.replace(resolve(CPU), precision="32", threads=2)
    assert change(tmp_path, config) == ""  # nothing was trained yet
    (tmp_path / "metrics.jsonl").touch()
    assert change(tmp_path, config) == (
        "the run was trained on cuda (precision bf16, contiguous, 1 thread), and continues on cpu (precision 32, "
        "2 threads): settings that are not given are chosen for the new device"
    )
    assert read_config(tmp_path) == {"device": "cpu", "precision": "32", "threads": 2, "lr": 0.3}
    assert change(tmp_path, config) == ""


def test_other_processes_wait_for_a_change_of_the_device_only() -> None:
    here, there = {"device": "cpu", "precision": "32", "lr": 0.3}, {**ON_GPU, "lr": 0.1}
    assert on_device_of(here, there) == {**ON_GPU, "lr": 0.3}
    assert on_device_of(here, {**there, "device": "cpu"}) == here


class Told(Silent):
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(" ".join(text.split()))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_measured_is_measured_anew_on_another_device_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The run was begun on this CPU, or its files say that a GPU began it."""
    taken = list[str]()
    answers = iter((Settings("32", "contiguous", 1), Settings("32", "auto", 2)))

    def fastest(*_: Any) -> tuple[Settings, str]:
        taken.append(device)
        return next(answers), "by steps"

    monkeypatch.setattr(measured, "fastest", fastest)
    config = Config(width=2, method="joint", branch="linear", per_class=20, batch_size=64, device="cpu", epochs=1)
    config = dataclasses.replace(config, schedule="constant")
    train(config, tmp_path / "run")
    moved_from(tmp_path / "run", device)
    reporter = Told()
    train(dataclasses.replace(config, epochs=2), tmp_path / "run", resume=True, reporter=reporter)
    stored = read_config(tmp_path / "run")
    records = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    changes = [record for record in records if record["kind"] == "device"]
    if device == "cpu":
        assert len(taken) == 1 and stored["memory-format"] == "contiguous" and stored["threads"] == 1 and not changes
        assert "by steps" not in reporter.notes
        return
    assert len(taken) == 2 and "memory-format" not in stored and stored["threads"] == 2 and "by steps" in reporter.notes
    settings = {"precision": "32", "memory_format": "auto"}
    before = {"before": "cuda", "precision_before": "32", "memory_format_before": "contiguous"}
    assert changes == [{"kind": "device", "step": 1, "device": "cpu", **before, **settings}]
    note = "the run was trained on cuda (precision 32, contiguous, 1 thread), and continues on cpu (precision 32, 2 thr"
    assert [text.startswith(note) for text in reporter.notes].count(True) == 1


def moved_from(run: Path, device: str) -> None:
    """Let the files of a run say that it was trained on this kind of device."""
    import yaml

    from offramp.digests import of_file

    stored = read_config(run)
    (run / "config.yaml").write_text(yaml.safe_dump({**stored, "device": device}))
    if device == "cpu":
        return
    for checkpoint in (run / "checkpoints").iterdir():
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        torch.save({**state, "rng_cuda": state["rng"]}, checkpoint / "state.pt")
        manifest = json.loads((checkpoint / "checkpoint.json").read_text())
        manifest["blake2b"]["state.pt"] = of_file(checkpoint / "state.pt")
        (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))
