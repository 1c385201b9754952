"""Half of the way here, half of it there: the same answers, from one file that is read with suspicion."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.bundle import partial_state
from offramp.bundle.read import Bundle, open_bundle
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import Stepper
from offramp.net import segments


def inputs(exported: Any, count: int = 60) -> np.ndarray:
    split = exported.data.splits["cal"]
    return exported.manifest.preprocessing.normalise(split.source.batch(split.indices[:count]))


def stopped(bundle: Bundle, arrays: np.ndarray, passed: int, size: int) -> list[tuple[Stepper, list[str]]]:
    exported = []
    for begin in range(0, len(arrays), size):
        stepper = Stepper(bundle.policy, arrays[begin : begin + size])
        for segment in bundle.segments[:passed]:
            if not stepper.done:
                stepper.advance(segment)
        exported.append((stepper, [f"image {begin + row}" for row in range(len(arrays[begin : begin + size]))]))
    return exported


@pytest.mark.parametrize("passed", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_two_halves_make_the_whole(exported: Any, tmp_path: Path, passed: int, size: int) -> None:
    arrays = inputs(exported)
    here, there = open_bundle(exported.folder, end=passed), open_bundle(exported.folder, begin=passed)
    whole = open_bundle(exported.folder).answer(arrays)
    handed = partial_state.gather(here.manifest, here.policy, stopped(here, arrays, passed, size), passed)
    partial_state.save(handed, tmp_path / "cut.npz", here.manifest)
    result = partial_state.load(tmp_path / "cut.npz", there)
    last = [part.exit for part in here.manifest.parts][passed - 1]
    staying = np.flatnonzero(whole.exit > last)
    assert list(result.names) == [f"image {row}" for row in staying] and len(staying) > 1
    stepper = result.stepper(there, slice(None))
    for segment in there.segments:
        if not stepper.done:
            stepper.advance(segment)
    assert stepper.answer is not None
    assert stepper.answer.exit.tolist() == whole.exit[staying].tolist()
    np.testing.assert_allclose(stepper.answer.logits, whole.logits[staying], atol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path / "cut.npz"]


LEARNED = {"score": "learned", "predictors": ((1.0, *(0.0,) * 5, 0.5),) * 2 + ((*(0.0,) * 5, 9.0, -4.0),)}


@pytest.mark.parametrize(
    "changes", [{"score": "patience", "patience": 2}, {"answer": "sum"}, {"answer": "exit"}, LEARNED]
)
def test_what_the_policy_looks_back_at_goes_along(exported: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle = open_bundle(exported.folder)
    policy = ExitPolicy(**{**vars(exported.policy), **changes})
    bundle = Bundle(bundle.folder, bundle.manifest, policy, bundle.segments)
    arrays = inputs(exported)
    whole = bundle.answer(arrays)
    handed = partial_state.gather(bundle.manifest, policy, stopped(bundle, arrays, 1, 20), 1)
    partial_state.save(handed, tmp_path / "cut.npz", bundle.manifest)
    there = Bundle(bundle.folder, bundle.manifest, policy, bundle.segments[1:], begin=1)
    stepper = partial_state.load(tmp_path / "cut.npz", there).stepper(there, slice(None))
    for segment in there.segments:
        if not stepper.done:
            stepper.advance(segment)
    assert stepper.answer is not None
    assert stepper.answer.exit.tolist() == whole.exit[whole.exit > 0].tolist()
    assert len(stepper.answer.exit)


def test_nobody_goes_on(exported: Any, tmp_path: Path) -> None:
    there = open_bundle(exported.folder, begin=1)
    partial_state.save(partial_state.gather(there.manifest, there.policy, [], 1), tmp_path / "cut.npz", there.manifest)
    assert partial_state.load(tmp_path / "cut.npz", there).names == ()


@pytest.fixture
def cut(exported: Any, tmp_path: Path) -> Path:
    bundle = open_bundle(exported.folder)
    handed = partial_state.gather(bundle.manifest, bundle.policy, stopped(bundle, inputs(exported, 30), 1, 10), 1)
    partial_state.save(handed, tmp_path / "cut.npz", bundle.manifest)
    return tmp_path / "cut.npz"


def rewritten(path: Path, header: dict[str, Any] | None = None, **arrays: Any) -> None:
    """The same file with other content, None taking an array out."""
    with np.load(path) as result:
        content = {name: result[name] for name in result.files}
    said = json.loads(content["header"].tobytes()) | (header or {})
    content["header"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    content = {name: value for name, value in (content | arrays).items() if value is not None}
    np.savez(path, allow_pickle=True, **content)


def says(path: Path, exported: Any, begin: int = 1) -> str:
    with pytest.raises(ValueError) as caught:
        partial_state.load(path, open_bundle(exported.folder, begin=begin))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_of_another_segment_version_or_bundle(exported: Any, cut: Path) -> None:
    assert "passed 1 segments: continue with from_=1, not 2" in says(cut, exported, begin=2)
    rewritten(cut, {"version": 2})
    assert "has state version 2; this offramp reads version 1" in says(cut, exported)
    rewritten(cut, {"version": 1, "bundle": "0" * 64})
    assert "was written by another bundle than" in says(cut, exported)


def test_a_changed_byte_anywhere_in_the_arrays(exported: Any, cut: Path) -> None:
    content = bytearray(cut.read_bytes())
    content[len(content) // 2] ^= 1
    cut.write_bytes(content)
    assert "is not a state file, or is damaged: " in says(cut, exported)


def test_a_file_that_is_truncated_or_something_else(exported: Any, cut: Path, tmp_path: Path) -> None:
    content = cut.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        assert "is not a state file, or is damaged: " in says(cut, exported)
    np.savez(cut, something=np.zeros(3))
    assert "is not an offramp state file" in says(cut, exported)
    assert "there is no such state file" in says(tmp_path / "nowhere.npz", exported)


def test_nothing_is_unpickled_or_blown_up(exported: Any, cut: Path) -> None:
    content = cut.read_bytes()
    rewritten(cut, state_0=np.array([print], dtype=object))
    assert "does not hold the plain numbers" in says(cut, exported)
    cut.write_bytes(content)
    with np.load(cut) as result:
        np.savez_compressed(cut, **{name: result[name] for name in result.files})
    assert "it is compressed" in says(cut, exported)
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000,), }"
    header = np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("huge.npy", header)
    assert "is not a state file, or is damaged" in says(cut, exported)


def test_a_file_that_is_too_large(exported: Any, cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_state, "LARGEST", 100)
    assert "is larger than the 0 GiB that a state file may have" in says(cut, exported)


def test_what_cannot_be_written_leaves_the_old_file(exported: Any, cut: Path) -> None:
    content = cut.read_bytes()
    unwritable = partial_state.PartialState(1, ("a",), {"state_0": np.array([print], dtype=object)})
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        partial_state.save(unwritable, cut, exported.manifest)
    assert cut.read_bytes() == content and list(cut.parent.iterdir()) == [cut]


def test_arrays_of_another_shape_or_type(exported: Any, cut: Path) -> None:
    content = cut.read_bytes()
    with np.load(cut) as result:
        state, total = result["state_0"], result["judged_total"]
    for arrays, what in (
        ({"state_0": state[1:]}, "state_0 is float32"),
        ({"state_0": state.astype(np.float64)}, "state_0 is float64"),
        ({"state_0": None}, "state_0 is missing"),
        ({"judged_total": total[:, 1:]}, "judged_total is float32"),
        ({"carry_1": None}, "carry_1 is missing"),
    ):
        rewritten(cut, **arrays)
        assert f"is damaged: {what}" in says(cut, exported)
        cut.write_bytes(content)
    rewritten(cut, {"names": [1, 2]})
    assert "is damaged: it names no images" in says(cut, exported)


def test_the_network_itself_hands_over_the_same(exported: Any) -> None:
    """The state is that of the torch segments, whichever side has torch."""
    arrays = inputs(exported, 5)
    with torch.inference_mode():
        state, carry, _ = segments(exported.net, exported.policy.enabled)[0](torch.from_numpy(arrays), ())
    result, found_carry, _ = open_bundle(exported.folder).segments[0](arrays, ())
    for wanted, values in zip((*state, *carry), (*result, *found_carry), strict=True):
        np.testing.assert_allclose(values, wanted.numpy(), atol=1e-4)
