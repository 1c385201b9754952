"""Checkpoints: whole or not there, checked before use, and never a way to run somebody's code."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from offramp.train.checkpoint import KEPT, Damaged, latest, load, load_weights, save, save_weights

WEIGHTS = {
    "weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "steps": torch.tensor(7),
    "half": torch.randn(3).bfloat16(),
}
STATE: dict[str, Any] = {
    "position": {"epoch": 1, "step": 3, "best": 0.5},
    "rng": torch.get_rng_state(),
    "optimizer": {"state": {0: {"momentum_buffer": torch.randn(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "rng_cuda": None,
}


def written(folder: Path, step: int = 3) -> Path:
    return save(folder, step, WEIGHTS, STATE)


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    result = load(written(tmp_path))
    assert result.path == tmp_path / "step-000000003"
    assert result.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(result.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert result.weights["half"].dtype == torch.bfloat16
    assert torch.equal(result.state["rng"], STATE["rng"]) and result.state["position"] == STATE["position"]
    momentum = result.state["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, STATE["optimizer"]["state"][0]["momentum_buffer"])


def test_the_newest_checkpoints_stay_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / ".part-step-000000001").mkdir()
    for step in (5, 9, 10, 100):
        written(tmp_path, step)
    assert KEPT == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000100"]
    result, refused = latest(tmp_path)
    assert result is not None and result.path.name == "step-000000100" and not refused


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    written(tmp_path)
    save(tmp_path, 3, {"weight": torch.zeros(1)}, STATE)
    assert load(tmp_path / "step-000000003").weights["weight"].tolist() == [0.0]


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) == (None, [])
    assert latest(tmp_path / "nowhere") == (None, [])


def manifest(path: Path, **changes: Any) -> None:
    result = {**json.loads((path / "checkpoint.json").read_text()), **changes}
    (path / "checkpoint.json").write_text(json.dumps(result))


def digested(path: Path) -> None:
    """Make the manifest fit the files again, as somebody would who changed them on purpose."""
    names = ("weights.safetensors", "state.pt")
    digests = {name: hashlib.blake2b((path / name).read_bytes(), digest_size=16).hexdigest() for name in names}
    manifest(path, blake2b=digests)


def truncate(path: Path, name: str) -> None:
    (path / name).write_bytes((path / name).read_bytes()[:-10])


class Evil:
    """Unpickled without care, this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


DAMAGE: dict[str, tuple[Any, str]] = {
    "weights cut": (lambda path: truncate(path, "weights.safetensors"), r"weights\.safetensors is missing, truncated"),
    "state cut": (lambda path: truncate(path, "state.pt"), r"state\.pt is missing, truncated or changed"),
    "weights gone": (lambda path: (path / "weights.safetensors").unlink(), "is missing, truncated or changed"),
    "manifest gone": (lambda path: (path / "checkpoint.json").unlink(), r"checkpoint\.json cannot be read"),
    "manifest cut": (lambda path: truncate(path, "checkpoint.json"), r"checkpoint\.json is damaged"),
    "foreign": (lambda path: manifest(path, format="other"), "is not a checkpoint of offramp"),
    "a list": (lambda path: (path / "checkpoint.json").write_text("[]"), "is not a checkpoint of offramp"),
    "newer": (lambda path: manifest(path, version=99), "has checkpoint version 99; this offramp reads version 1"),
    "no digests": (lambda path: manifest(path, blake2b=None), "is missing, truncated or changed"),
    "digests of another kind": (lambda path: manifest(path, blake2b=["x"]), "is missing, truncated or changed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_named_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    written(tmp_path, 1)
    newest = written(tmp_path, 2)
    break_it, says = DAMAGE[damage]
    break_it(newest)
    with pytest.raises(Damaged, match=says) as caught:
        load(newest)
    assert str(newest) in str(caught.value) and "\n" not in str(caught.value)
    result, refused = latest(tmp_path)
    assert result is not None and result.path.name == "step-000000001"
    assert refused == [str(caught.value)]


def test_where_none_is_whole_all_are_named(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(written(tmp_path, step), "state.pt")
    result, refused = latest(tmp_path)
    assert result is None and len(refused) == 2 and "step-000000002" in refused[0]


def test_a_malicious_state_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trap = written(tmp_path / "checkpoints"), tmp_path / "trap"
    for write in (
        lambda file: torch.save({"position": Evil(trap)}, file),
        lambda file: file.write_bytes(pickle.dumps(Evil(trap), protocol=2)),
    ):
        write(path / "state.pt")
        digested(path)
        with pytest.raises(Damaged, match=r"state\.pt contains something other than tensors and plain values"):
            load(path)
        assert not trap.exists()
        assert latest(tmp_path / "checkpoints")[0] is None


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path / "weights.safetensors").write_bytes(pickle.dumps({}))
    digested(path)
    with pytest.raises(Damaged, match=r"weights\.safetensors cannot be read as safetensors"):
        load(path)


def test_weights_alone_carry_what_their_run_said(tmp_path: Path) -> None:
    about = {"epoch": 3, "val_accuracy": [0.5, None], "classes": ["a", "b"], "shape": [1, 8, 8]}
    save_weights(tmp_path / "last.safetensors", WEIGHTS, about)
    weights, said = load_weights(tmp_path / "last.safetensors")
    assert said.pop("digest") and said == about and all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


HEADERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"classes": "absent"}, "classes is missing"),
    ({"classes": ["a", 1]}, r"classes\[1\] must be a text, got 1"),
    ({"classes": []}, "in no classes"),
    ({"shape": [8, 8]}, "names images"),
    ({"shape": [1, 10**9, 8]}, "names images"),
    ({"epoch": "3"}, "epoch must be a whole number, got '3'"),
    ({"val_accuracy": ["x"]}, r"val_accuracy\[0\] must be a finite number or null"),
)


def test_weights_of_others_and_damaged_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    with pytest.raises(Damaged, match=r"last\.safetensors cannot be read as safetensors"):
        load_weights(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(Damaged, match="was not written by offramp: its header says nothing of the run"):
        load_weights(path)
    save_file({"weight": torch.zeros(1)}, path, metadata={"about": "{"})
    with pytest.raises(Damaged, match="its header is damaged: it is not JSON"):
        load_weights(path)
    about = {"epoch": 3, "val_accuracy": None, "classes": ["a", "b"], "shape": [1, 8, 8]}
    for changes, says in HEADERS:
        save_weights(path, WEIGHTS, {key: value for key, value in {**about, **changes}.items() if value != "absent"})
        with pytest.raises(Damaged, match=f"last.safetensors.*{says}"):
            load_weights(path)
    save_weights(path, WEIGHTS, about)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Damaged, match="cannot be read as safetensors"):
        load_weights(path)
    path.write_bytes(pickle.dumps(Evil(tmp_path / "trap")))
    with pytest.raises(Damaged, match="cannot be read as safetensors"):
        load_weights(path)
    assert not (tmp_path / "trap").exists()


def test_weights_can_be_read_by_whom_other_files_can(tmp_path):
    (tmp_path / "other").write_text("")
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, {"epoch": 1})
    built = save(tmp_path / "checkpoints", 1, {"a": torch.zeros(2)}, {})
    for file in (tmp_path / "w.safetensors", built / "weights.safetensors"):
        assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
