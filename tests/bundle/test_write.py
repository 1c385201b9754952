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
from offramp.bundle.onnx import operators_kept
from offramp.bundle.read import open_bundle
from offramp.bundle.write import preprocessing_of, write
from offramp.data.augment import normalise
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.net import segments


def test_it_answers_what_the_network_does_in_batches_of_any_size(exported: Any) -> None:
    bundle = open_bundle(exported.folder)
    ids = exported.data.splits["test"].indices[:97]
    pixels = exported.data.splits["test"].source.batch(ids)
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(pixels), exported.data.mean, exported.data.std)
        wanted = answer(segments(exported.net, exported.policy.enabled), exported.policy, inputs)
    assert len(set(wanted.exit.tolist())) == 3, "a policy that uses every exit tests more"
    for size in (1, 2, 5, 97):
        result = [
            bundle.answer(bundle.manifest.preprocessing.normalise(pixels[begin : begin + size]))
            for begin in range(0, 97, size)
        ]
        assert np.concatenate([part.exit for part in result]).tolist() == wanted.exit.tolist()
        np.testing.assert_allclose(np.concatenate([part.logits for part in result]), wanted.logits, atol=1e-4)
        np.testing.assert_allclose(np.concatenate([part.score for part in result]), wanted.score, atol=1e-5)
    many = bundle.answer(bundle.manifest.preprocessing.normalise(np.resize(pixels, (1024, *pixels.shape[1:]))))
    assert many.exit.tolist() == np.resize(wanted.exit, 1024).tolist()
    np.testing.assert_allclose(many.logits, np.resize(wanted.logits, (1024, 10)), atol=1e-4)


def test_the_manifest_says_what_was_measured(exported: Any) -> None:
    manifest = exported.manifest
    assert manifest == open_bundle(exported.folder).manifest
    assert manifest.classes == tuple("0123456789") and manifest.exits == 4
    assert [part.exit for part in manifest.parts] == [0, 2, 3]
    assert [port.shape for port in manifest.parts[1].takes_state] == [(4, 8, 8), (6, 4, 4)]
    assert [(port.shape, port.dtype) for port in manifest.parts[1].takes_carry] == [((10,), "float32"), ((), "int64")]
    assert not manifest.parts[2].gives_state + manifest.parts[2].gives_carry
    assert manifest.preprocessing.resize == 10
    assert manifest.verified["images"] == {"test": 300} and 0 < manifest.verified["largest_difference"] <= 1e-4
    assert exported.advanced[:5] == [1, 2, 7, 32, 32] and sum(exported.advanced) == 300
    measured = manifest.measured
    ids = exported.data.splits["test"].indices[np.arange(300) * 359 // 300]
    source = exported.data.splits["test"].source
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(source.batch(ids)), exported.data.mean, exported.data.std)
        result = answer(segments(exported.net, exported.policy.enabled), exported.policy, inputs)
    assert measured["accuracy"] == float((result.logits.argmax(1).numpy() == source.labels[ids]).mean())
    assert measured["shares"] == [float((result.exit == exit).double().mean()) for exit in range(4)]
    assert measured["shares"][1] == 0 and measured["samples"] == 300
    assert len(measured["segment_macs"]) == len(measured["segment_ms"]) == 3 and measured["ms"] > 0
    costs = np.cumsum(measured["segment_macs"])
    assert measured["macs"] == pytest.approx(costs @ [measured["shares"][exit] for exit in (0, 2, 3)])


def test_images_are_spread_over_test_and_then_the_other_splits(exported: Any) -> None:
    chosen = verify.images(exported.data, 1000)
    assert {split: len(rows) for split, rows in chosen.items()} == {"test": 359, "cal": 71, "val": 72, "train": 498}
    assert all(len(set(rows)) == len(rows) for rows in chosen.values())
    assert chosen["train"][-1] in exported.data.splits["train"].indices[-4:]
    assert sum(map(len, verify.images(exported.data, 10**6).values())) == 1797


def test_a_network_with_other_weights_is_found_out(exported: Any, make_network: Callable[[int], Any]) -> None:
    bundle, other = open_bundle(exported.folder), make_network(0)
    verify.verify(bundle, other, exported.data, 40)
    with torch.no_grad():
        other.branches[3].classifier.bias[2] += 1e-3
    with pytest.raises(verify.Difference, match=r"segment-3.onnx: at exit 4 the logits of image \d+ of test \(batch"):
        verify.verify(bundle, other, exported.data, 40)


def test_another_preprocessing_is_found_out(exported: Any) -> None:
    bundle = open_bundle(exported.folder)
    object.__setattr__(bundle.manifest.preprocessing, "std", (0.38,))
    with pytest.raises(verify.Difference, match=r"segment-1.onnx: at exit 1 the logits of image"):
        verify.verify(bundle, exported.net, exported.data, 40)


def test_another_exit_is_found_out_but_not_at_a_tie(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(exported.folder)
    shifted = ExitPolicy(**{**vars(exported.policy), "thresholds": (0.7, 0.5, 0.6, 0.5)})
    reference = verify._reference
    monkeypatch.setattr(verify, "_reference", lambda parts, policy, inputs: reference(parts, shifted, inputs))
    ids = verify.images(exported.data, 200)["test"]
    inputs = bundle.manifest.preprocessing.normalise(exported.data.splits["test"].source.batch(ids))
    differing = bundle.answer(inputs).exit != replace(bundle, policy=shifted).answer(inputs).exit
    first = f"image {ids[differing][0]} of test takes exit [34] in the bundle, but exit 1 in the network"
    with pytest.raises(verify.Difference, match=first):
        verify.verify(bundle, exported.net, exported.data, 200)
    monkeypatch.setattr(verify, "_tie", lambda *args: True)
    result, _ = verify.verify(bundle, exported.net, exported.data, 200)
    assert result["ties"] > 0


def test_an_answer_that_changes_when_samples_leave_is_found_out(exported: Any) -> None:
    """The logits of whole batches are the network's, those of what is left of a batch are not."""
    bundle = open_bundle(exported.folder)
    *before, last = bundle.segments

    def forgetful(state: Any, carry: Any) -> Any:
        state, carry, logits = last(state, carry)
        return state, carry, logits if len(logits) in verify.SIZES else 1.1 * logits

    bundle = replace(bundle, segments=(*before, forgetful))
    with pytest.raises(verify.Difference, match=r"leaving early: at exit 4 the logits of image \d+ of test \(batch of"):
        verify.verify(bundle, exported.net, exported.data, 74)


def test_what_a_tie_is(exported: Any) -> None:
    near = verify.Reference(
        torch.zeros(1, 1, 3), torch.tensor([[[1.0, 1.0001, 0.0]]]), torch.tensor([[0.85005]]), torch.zeros(1)
    )
    policy = exported.policy
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
        result = np.array([[0.5, 1.0], [wrong, 1.0]])
        with pytest.raises(verify.Difference, match=r"it: at exit 1 the logits of image 9 of test \(batch of 2\)"):
            verify._near(result, wanted, "it", 0, samples)
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


def test_what_does_not_agree_is_not_written(exported: Any, make_network: Callable[[int], Any], tmp_path: Path) -> None:
    net = make_network(0)
    net.stages[3] = Unfaithful(net.stages[3])
    policy = ExitPolicy(thresholds=(NEVER,) * 4, enabled=(False, False, False, True))
    with pytest.raises(verify.Difference, match=r"segment-1\.onnx: at exit 4"):
        write(tmp_path / "b", net, policy, exported.data, images=20)
    assert not list(tmp_path.iterdir())


class Counts(torch.nn.Module):
    """Does something else to each sample of the batch: nothing that one file can say for batches of any size."""

    def forward(self, state: Any) -> Any:
        return torch.stack([row * number for number, row in enumerate(state)])


def test_a_network_that_cannot_be_exported(exported: Any, make_network: Callable[[int], Any], tmp_path: Path) -> None:
    net = make_network(0)
    net.stages[0] = torch.nn.Sequential(Counts(), net.stages[0])
    policy = ExitPolicy(thresholds=(NEVER,) * 4, enabled=(False, False, False, True))
    with pytest.raises(
        ValueError, match="the segment up to exit 4 cannot be exported: it depends on the batch size"
    ) as caught:
        write(tmp_path / "b", net, policy, exported.data, images=20)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_exporters_table_of_operators_is_built_once() -> None:
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    before, tables = vars(registration.ONNXRegistry)["from_torchlib"], []
    for _ in range(2):
        with operators_kept():
            tables.append(registration.ONNXRegistry().from_torchlib(opset_version=18))
        assert vars(registration.ONNXRegistry)["from_torchlib"] is before
    assert tables[0] is tables[1] and "aten::relu" in tables[0].functions


def test_what_is_there_already_is_left_alone(exported: Any, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    for out in (tmp_path / "b", tmp_path / "b" / "mine"):
        with pytest.raises(ValueError, match="already exists and is not an empty folder; choose another out"):
            write(out, exported.net, exported.policy, exported.data)
    assert (tmp_path / "b" / "mine").read_text() == "x"


def test_a_policy_of_another_network(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the policy is for 3 exits, but the network has 4"):
        write(tmp_path / "b", exported.net, ExitPolicy(thresholds=(0.5,) * 3, enabled=(True,) * 3), exported.data)


def test_images_that_are_not_square(exported: Any) -> None:
    with pytest.raises(ValueError, match="digits has images of 8x9; bundles read square ones"):
        preprocessing_of(replace(exported.data, shape=(1, 8, 9)))


def test_the_manifest_is_plain_json_with_no_more_than_it_says(exported: Any) -> None:
    result = json.loads((exported.folder / "manifest.json").read_text())
    assert result["format"] == "offramp-bundle" and result["version"] == 1
    assert {"policy.json", "segment-1.onnx", "segment-2.onnx", "segment-3.onnx"} == set(result["files"])
    assert {file.name for file in exported.folder.iterdir()} == {"manifest.json", *result["files"]}
