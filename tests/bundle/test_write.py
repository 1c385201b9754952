"""A bundle is what the network is, or it is not written at all; and the error says where they differ."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.bundle import verify
from offramp.bundle.read import open_bundle
from offramp.bundle.write import preprocessing_of, write
from offramp.data.augment import normalise
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.net import segments


def test_it_answers_what_the_network_does_in_batches_of_any_size(made: Any) -> None:
    bundle = open_bundle(made.folder)
    ids = made.data.splits["test"].indices[:97]
    pixels = made.data.splits["test"].source.batch(ids)
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(pixels), made.data.mean, made.data.std)
        wanted = answer(segments(made.net, made.policy.enabled), made.policy, inputs)
    assert len(set(wanted.exit.tolist())) == 3, "a policy that uses every exit tests more"
    for size in (1, 2, 5, 97):
        found = [
            bundle.answer(bundle.manifest.preprocessing.normalise(pixels[begin : begin + size]))
            for begin in range(0, 97, size)
        ]
        assert np.concatenate([part.exit for part in found]).tolist() == wanted.exit.tolist()
        np.testing.assert_allclose(np.concatenate([part.logits for part in found]), wanted.logits, atol=1e-4)
        np.testing.assert_allclose(np.concatenate([part.score for part in found]), wanted.score, atol=1e-5)
    many = bundle.answer(bundle.manifest.preprocessing.normalise(np.resize(pixels, (1024, *pixels.shape[1:]))))
    assert many.exit.tolist() == np.resize(wanted.exit, 1024).tolist()
    np.testing.assert_allclose(many.logits, np.resize(wanted.logits, (1024, 10)), atol=1e-4)


def test_the_manifest_says_what_was_measured(made: Any) -> None:
    manifest = made.manifest
    assert manifest == open_bundle(made.folder).manifest
    assert manifest.classes == tuple("0123456789") and manifest.exits == 4
    assert [part.exit for part in manifest.parts] == [0, 2, 3]
    assert [port.shape for port in manifest.parts[1].takes_state] == [(4, 8, 8), (6, 4, 4)]
    assert [(port.shape, port.dtype) for port in manifest.parts[1].takes_carry] == [((10,), "float32"), ((), "int64")]
    assert not manifest.parts[2].gives_state + manifest.parts[2].gives_carry
    assert manifest.preprocessing.resize == 10
    assert manifest.verified["images"] == {"test": 300} and 0 < manifest.verified["largest_difference"] <= 1e-4
    assert made.advanced[:5] == [1, 2, 7, 32, 32] and sum(made.advanced) == 300
    measured = manifest.measured
    ids = made.data.splits["test"].indices[np.arange(300) * 359 // 300]
    source = made.data.splits["test"].source
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(source.batch(ids)), made.data.mean, made.data.std)
        found = answer(segments(made.net, made.policy.enabled), made.policy, inputs)
    assert measured["accuracy"] == float((found.logits.argmax(1).numpy() == source.labels[ids]).mean())
    assert measured["shares"] == [float((found.exit == exit).double().mean()) for exit in range(4)]
    assert measured["shares"][1] == 0 and measured["samples"] == 300
    assert len(measured["segment_macs"]) == len(measured["segment_ms"]) == 3 and measured["ms"] > 0
    costs = np.cumsum(measured["segment_macs"])
    assert measured["macs"] == pytest.approx(costs @ [measured["shares"][exit] for exit in (0, 2, 3)])


def test_images_are_spread_over_test_and_then_the_other_splits(made: Any) -> None:
    chosen = verify.images(made.data, 1000)
    assert {split: len(rows) for split, rows in chosen.items()} == {"test": 359, "cal": 71, "val": 72, "train": 498}
    assert all(len(set(rows)) == len(rows) for rows in chosen.values())
    assert chosen["train"][-1] in made.data.splits["train"].indices[-4:]
    assert sum(map(len, verify.images(made.data, 10**6).values())) == 1797


def test_a_network_with_other_weights_is_found_out(made: Any, make_network: Callable[[int], Any]) -> None:
    bundle, other = open_bundle(made.folder), make_network(0)
    verify.verify(bundle, other, made.data, 40)
    with torch.no_grad():
        other.branches[3].classifier.bias[2] += 1e-3
    with pytest.raises(verify.Difference, match=r"segment-3.onnx: at exit 4 the logits of image \d+ of test \(batch"):
        verify.verify(bundle, other, made.data, 40)


def test_another_preprocessing_is_found_out(made: Any) -> None:
    bundle = open_bundle(made.folder)
    object.__setattr__(bundle.manifest.preprocessing, "std", (0.38,))
    with pytest.raises(verify.Difference, match=r"segment-1.onnx: at exit 1 the logits of image"):
        verify.verify(bundle, made.net, made.data, 40)


def test_another_exit_is_found_out_but_not_at_a_tie(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(made.folder)
    shifted = ExitPolicy(**{**vars(made.policy), "thresholds": (0.7, 0.5, 0.6, 0.5)})
    reference = verify._reference
    monkeypatch.setattr(verify, "_reference", lambda parts, policy, inputs: reference(parts, shifted, inputs))
    ids = verify.images(made.data, 200)["test"]
    inputs = bundle.manifest.preprocessing.normalise(made.data.splits["test"].source.batch(ids))
    differing = bundle.answer(inputs).exit != replace(bundle, policy=shifted).answer(inputs).exit
    first = f"image {ids[differing][0]} of test takes exit [34] in the bundle, but exit 1 in the network"
    with pytest.raises(verify.Difference, match=first):
        verify.verify(bundle, made.net, made.data, 200)
    monkeypatch.setattr(verify, "_tie", lambda *given: True)
    found, _ = verify.verify(bundle, made.net, made.data, 200)
    assert found["ties"] > 0


def test_an_answer_that_changes_when_samples_leave_is_found_out(made: Any) -> None:
    """The logits of whole batches are the network's, those of what is left of a batch are not."""
    bundle = open_bundle(made.folder)
    *before, last = bundle.segments

    def forgetful(state: Any, carry: Any) -> Any:
        state, carry, logits = last(state, carry)
        return state, carry, logits if len(logits) in verify.SIZES else 1.1 * logits

    bundle = replace(bundle, segments=(*before, forgetful))
    with pytest.raises(verify.Difference, match=r"leaving early: at exit 4 the logits of image \d+ of test \(batch of"):
        verify.verify(bundle, made.net, made.data, 74)


def test_what_a_tie_is(made: Any) -> None:
    near = verify.Reference(
        torch.zeros(1, 1, 3), torch.tensor([[[1.0, 1.0001, 0.0]]]), torch.tensor([[0.85005]]), torch.zeros(1)
    )
    policy = made.policy
    assert verify._tie(policy, near, [0, 2, 3], 0, 0)
    far = near._replace(scores=torch.tensor([[0.8502]]))
    assert not verify._tie(policy, far, [0, 2, 3], 0, 0)
    patient = ExitPolicy(thresholds=(0.0,) * 4, enabled=(True,) * 4, score="patience", patience=2)
    assert verify._tie(patient, near, [0, 1, 2, 3], 0, 0)
    assert not verify._tie(patient, near._replace(answers=torch.tensor([[[1.0, 1.1, 0.0]]])), [0, 1, 2, 3], 0, 0)


def test_a_difference_is_told_with_its_image() -> None:
    """NaN is one, too, and so are logits of another shape."""
    samples = verify.Samples("test", np.zeros((2, 1, 8, 8), np.uint8), np.zeros(2), np.array([5, 9]))
    wanted = np.array([[0.5, 1.0], [0.5, 1.0]])
    for wrong in (np.nan, 0.6):
        found = np.array([[0.5, 1.0], [wrong, 1.0]])
        with pytest.raises(verify.Difference, match=r"it: at exit 1 the logits of image 9 of test \(batch of 2\)"):
            verify._near(found, wanted, "it", 0, samples)
    with pytest.raises(verify.Difference, match=r"it returns \(2, 1\) at exit 1, but the network \(2, 2\)"):
        verify._near(wanted[:, :1], wanted, "it", 0, samples)


class Unfaithful(torch.nn.Module):
    """Computes something else while it is traced."""

    def __init__(self, stage: torch.nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, state: Any) -> Any:
        fine, coarse = self.stage(state)
        return (fine + 1, coarse) if torch.compiler.is_exporting() else (fine, coarse)


def test_what_does_not_agree_is_not_written(made: Any, make_network: Callable[[int], Any], tmp_path: Path) -> None:
    net = make_network(0)
    net.stages[3] = Unfaithful(net.stages[3])
    policy = ExitPolicy(thresholds=(NEVER,) * 4, enabled=(False, False, False, True))
    with pytest.raises(verify.Difference, match=r"segment-1\.onnx: at exit 4"):
        write(tmp_path / "b", net, policy, made.data, images=20)
    assert not list(tmp_path.iterdir())


class Counts(torch.nn.Module):
    """Does something else to each sample of the batch: nothing that one file can say for batches of any size."""

    def forward(self, state: Any) -> Any:
        return torch.stack([row * number for number, row in enumerate(state)])


def test_a_network_that_cannot_be_exported(made: Any, make_network: Callable[[int], Any], tmp_path: Path) -> None:
    net = make_network(0)
    net.stages[0] = torch.nn.Sequential(Counts(), net.stages[0])
    policy = ExitPolicy(thresholds=(NEVER,) * 4, enabled=(False, False, False, True))
    with pytest.raises(
        ValueError, match="the segment up to exit 4 cannot be exported: it depends on the batch size"
    ) as caught:
        write(tmp_path / "b", net, policy, made.data, images=20)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_left_alone(made: Any, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    for out in (tmp_path / "b", tmp_path / "b" / "mine"):
        with pytest.raises(ValueError, match="already exists and is not an empty folder; choose another out"):
            write(out, made.net, made.policy, made.data)
    assert (tmp_path / "b" / "mine").read_text() == "x"


def test_a_policy_of_another_network(made: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the policy is for 3 exits, but the network has 4"):
        write(tmp_path / "b", made.net, ExitPolicy(thresholds=(0.5,) * 3, enabled=(True,) * 3), made.data)


def test_images_that_are_not_square(made: Any) -> None:
    with pytest.raises(ValueError, match="digits has images of 8x9; bundles read square ones"):
        preprocessing_of(replace(made.data, shape=(1, 8, 9)))


def test_the_manifest_is_plain_json_with_no_more_than_it_says(made: Any) -> None:
    found = json.loads((made.folder / "manifest.json").read_text())
    assert found["format"] == "offramp-bundle" and found["version"] == 1
    assert {"policy.json", "segment-1.onnx", "segment-2.onnx", "segment-3.onnx"} == set(found["files"])
    assert {file.name for file in made.folder.iterdir()} == {"manifest.json", *found["files"]}
