"""A run's folder: claimed once, recognised when resumed, and never taken from anyone else."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from offramp.study.ledger import common
from offramp.train import run_dir
from offramp.train.run_dir import check_config, claim, read_config, read_history, read_result, write_result

CONFIG: dict[str, Any] = {"net": "resnet18", "lr": 0.1, "data-dir": None, "checkpoint-every": 500}


def a_run(folder: Path) -> Path:
    claim(folder, CONFIG, False)
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "a", CONFIG, False)
    assert read_config(tmp_path / "runs" / "a") == CONFIG
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["config.yaml"]


def test_an_empty_folder_and_one_that_never_started_are_free(tmp_path: Path) -> None:
    claim(tmp_path, CONFIG, False)
    claim(tmp_path, {**CONFIG, "lr": 0.2}, False)
    assert read_config(tmp_path)["lr"] == 0.2


def test_a_run_killed_while_its_configuration_was_written_is_free(tmp_path: Path) -> None:
    (tmp_path / ".part-config.yaml").write_text("net: res")
    claim(tmp_path, CONFIG, True)
    assert read_config(tmp_path) == CONFIG


def test_a_run_is_recognised_by_its_configuration(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    claim(folder, CONFIG, True)
    claim(folder, {**CONFIG, "data-dir": "/elsewhere", "checkpoint-every": 7, "threads": 2}, True)
    assert read_config(folder) == CONFIG
    with pytest.raises(ValueError, match="already contains this run; pass resume to continue it, or choose another"):
        claim(folder, CONFIG, False)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.2}, "lr is 0.1 there, not 0.2; nothing was overwritten. Choose another out"),
        ({"lr": 0.2, "net": "resnet34"}, r"lr is 0.1 there, not 0.2 \(and 1 more\); nothing was overwritten"),
        ({"mixup": 0.2}, "mixup is None there, not 0.2"),
    ],
)
def test_another_run_is_never_overwritten(tmp_path: Path, changes: dict[str, Any], says: str, resume: bool) -> None:
    folder = a_run(tmp_path)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=f"contains a run with another configuration: {says}"):
        claim(folder, {**CONFIG, **changes}, resume)
    assert (folder / "config.yaml").read_bytes() == before


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(ValueError, match="is not empty and does not contain an offramp run; choose another out"):
            claim(tmp_path, CONFIG, resume)
    (tmp_path / "config.yaml").write_text("theirs: 1")
    with pytest.raises(ValueError, match="is not empty and does not contain an offramp run"):
        claim(tmp_path, CONFIG, False)
    assert (tmp_path / "config.yaml").read_text() == "theirs: 1"


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="a is a file, but a run is a folder"):
        claim(tmp_path / "a", CONFIG, False)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [("a: [1", "it is not YAML"), ("- a", "is damaged: it contains no options"), ("", "contains no options")],
)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_config(tmp_path)
    assert "config.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is not a run: it has no config\.yaml \(`offramp train --out .*` creates one\)"
    ):
        read_config(tmp_path)


def test_a_result_is_there_once_training_is_done(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    result = {"epochs": 2, "seconds": 1.5, "last": {"epoch": 2, "val_accuracy": [0.5]}, "best": None}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path) == result
    (tmp_path / "result.json").write_text('{"epo')
    with pytest.raises(ValueError, match=r"result\.json is damaged: it is not JSON"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", ": its content must be an object"),
        ("{}", ": epochs is missing"),
        ('{"epochs": 2}', ": seconds is missing"),
        ('{"epochs": "2"}', ": epochs must be a whole number, got '2'"),
        ('{"epochs": 2, "seconds": 1, "last": {"epoch": 1, "val_accuracy": [null]}}', r": last.val_accuracy\[0\] must"),
    ],
)
def test_a_result_that_is_believed_has_all_that_training_writes(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=rf"result\.json is damaged{says}"):
        read_result(tmp_path)


def test_what_changes_after_training_is_noticed(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    (folder / "metrics.jsonl").write_text('{"kind": "step", "epoch": 0, "step": 0, "loss": 2.5}\n')
    result = {"epochs": 1, "seconds": 1.5, "last": {"epoch": 1, "val_accuracy": None}, "best": None}
    write_result(folder, result)
    check_config(folder, {**CONFIG, "data-dir": "/elsewhere"})
    with pytest.raises(ValueError, match=r"config\.yaml was changed since the run was trained"):
        check_config(folder, {**CONFIG, "lr": 0.2})
    assert read_history(folder)[0]["loss"] == 2.5
    metrics = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(metrics.replace("2.5", "1.5"))
    with pytest.raises(ValueError, match=r"metrics\.jsonl was changed since training ended"):
        read_history(folder)
    (folder / "metrics.jsonl").write_text(metrics + metrics)
    assert len(read_history(folder)) == 2, "a run that is extended adds records"
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace("1.5", "2.5"))
    with pytest.raises(ValueError, match=r"result\.json was changed since it was written"):
        read_result(folder)


def test_the_configuration_is_yaml_that_a_person_can_read(tmp_path: Path) -> None:
    claim(tmp_path, CONFIG, False)
    assert (tmp_path / "config.yaml").read_text() == yaml.safe_dump(CONFIG, sort_keys=False)


def test_commands_in_messages_can_be_copied_whatever_the_path(tmp_path: Path) -> None:
    """Paths with spaces, quotes and a leading dash."""
    for name in ("my run", "it's", "a;b", "-r"):
        folder = Path(name)
        with pytest.raises(ValueError, match="the folder does not exist") as raised:
            read_config(folder)
        command = str(raised.value).split("`")[1]
        assert shlex.split(command) == ["offramp", "train", "--out", "./-r" if name == "-r" else name]


def test_no_run_begins_within_another_run_or_a_bundle(tmp_path: Path) -> None:
    for name, files in (("run", ("config.yaml", "metrics.jsonl")), ("bundle", ("manifest.json", "policy.json"))):
        (tmp_path / name / "deep").mkdir(parents=True)
        for file in files:
            (tmp_path / name / file).write_text("")
        for inner in (tmp_path / name / "deep/new", tmp_path / name / "deep"):
            with pytest.raises(ValueError, match=f"{inner} is within the {name} {tmp_path}"):
                claim(inner, CONFIG, False)
        assert not (tmp_path / name / "deep/new").exists()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/config.yaml").write_text("")  # settings that runs share: no run
    claim(tmp_path / "runs/new", CONFIG, False)


def test_a_run_stopped_before_its_first_step_is_resumed(tmp_path: Path) -> None:
    """Its folder holds the configuration and the record of the split, and nothing of training yet."""
    config = {"net": "resnet18", "epochs": 1}
    claim(tmp_path, config, resume=False)
    (tmp_path / "split.safetensors").write_bytes(b"")
    claim(tmp_path, config, resume=True)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty and does not contain an offramp run"):
        claim(tmp_path, config, resume=True)


def test_options_of_the_data_are_the_same_typed_or_filled_in(tmp_path: Path) -> None:
    """A run with inputs as its network expects them is resumed: what was filled in then is typed now."""
    filled = {**CONFIG, "data.mean": [0.5, 0.25, 1.0], "data.crop": 0.875}
    claim(tmp_path, filled, False)
    (tmp_path / "metrics.jsonl").touch()
    claim(tmp_path, {**CONFIG, "data.mean": "0.5,0.25,1.0", "data.crop": "0.875"}, True)
    assert read_config(tmp_path) == filled
    with pytest.raises(ValueError, match=r"data\.mean is \[0\.5, 0\.25, 1\.0\] there, not '0\.5,0\.25,0\.5'"):
        claim(tmp_path, {**filled, "data.mean": "0.5,0.25,0.5"}, True)
    one, other = (common({"net": "a", "data.crop": crop}) for crop in (0.875, "0.875"))
    assert one == other  # so lines of a ledger are recognised, too


def test_a_run_that_another_process_starts_meanwhile_is_not_taken_for_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(folder: Path) -> bool:
        (folder / run_dir.CONFIG).write_text("method: joint")
        (folder / run_dir.METRICS).touch()
        return False  # it was looked at just before

    monkeypatch.setattr(run_dir, "begun", begun)
    (tmp_path / run_dir.CONFIG).touch()
    assert not run_dir.check_folder(tmp_path, {"method": "joint"}, resume=True)
