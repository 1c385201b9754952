"""A bundle is opened whole and unchanged, or one sentence says what is wrong; and torch does not have to exist."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bundle.manifest import parse, render
from offramp.bundle.read import open_bundle, read_manifest

FILES = ("policy.json", "segment-1.onnx", "segment-2.onnx", "segment-3.onnx")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_named(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is truncated or changed since it was written"):
        open_bundle(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).write_bytes((copied / name).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name} is truncated or changed"):
        open_bundle(copied)
    (copied / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing, though manifest.json names it"):
        open_bundle(copied)


def test_a_link_is_not_followed(copied: Path, tmp_path: Path) -> None:
    (copied / FILES[1]).rename(tmp_path / "elsewhere.onnx")
    (copied / FILES[1]).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ValueError, match=f"{FILES[1]} is missing"):
        open_bundle(copied)


def test_no_byte_of_the_manifest_changes_unnoticed(exported: Any) -> None:
    text = (exported.folder / "manifest.json").read_bytes()
    for place in range(0, len(text), 3):
        changed = bytearray(text)
        changed[place] ^= 4
        with pytest.raises(ValueError, match=r"^m\.json (is|was|has|makes) "):
            parse(bytes(changed), "m.json")


def signed(manifest: dict[str, Any]) -> bytes:
    """The manifest with a digest that is right, whatever it says: as whoever writes one for us would."""
    blank = "0" * 64
    text = json.dumps({**manifest, "digest": blank})
    return text.replace(blank, hashlib.sha256(text.encode()).hexdigest()).encode()


def damaged(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(changes)


def renamed(name: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["parts"][0]["file"] = name

    return change


def reshaped(manifest: dict[str, Any]) -> None:
    manifest["parts"][0]["gives_state"][0]["shape"] = [4, 9, 9]


def retyped(manifest: dict[str, Any]) -> None:
    manifest["parts"][1]["takes_state"][0]["dtype"] = "object"


def ordered(*exits: int) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for part, exit in zip(manifest["parts"], exits, strict=True):
            part["exit"] = exit

    return change


def carrying(manifest: dict[str, Any]) -> None:
    manifest["parts"][0]["takes_carry"] = manifest["parts"][1]["takes_carry"]


def averaged(mean: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["preprocessing"].update(mean=[mean])


def resized(manifest: dict[str, Any]) -> None:
    manifest["preprocessing"]["size"] = manifest["preprocessing"]["resize"] = 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damaged(version=2), "has bundle version 2; this offramp reads version 1"),
        (damaged(version="1"), "has bundle version '1'"),
        (damaged(format="zip"), "is not the manifest of a bundle"),
        (renamed("../segment-1.onnx"), "'../segment-1.onnx' is not the name of a file in the bundle's folder"),
        (renamed("/etc/passwd"), "'/etc/passwd' is not the name of a file"),
        (renamed("a\\b.onnx"), "is not the name of a file"),
        (renamed(".."), "is not the name of a file"),
        (renamed("C:x"), "is not the name of a file"),
        (renamed("a.onnx."), "is not the name of a file"),
        (renamed("a.onnx/"), "is not the name of a file"),
        (renamed("a" * 102), "is not the name of a file"),
        (renamed(7), "7 is not the name of a file"),
        (renamed("other.onnx"), "other.onnx has no digest"),
        (damaged(files={"../x": "0"}), "'../x' is not the name of a file"),
        (damaged(files=[]), "is inconsistent"),
        (damaged(parts=[]), "segments of the exits [] do not end with the last of 4"),
        (damaged(exits=5), "segments of the exits [0, 2, 3] do not end with the last of 5"),
        (ordered(2, 0, 3), "segments of the exits [2, 0, 3] do not end with"),
        (ordered(0, 0, 3), "segments of the exits [0, 0, 3] do not end with"),
        (ordered(-1, 2, 3), "segments of the exits [-1, 2, 3] do not end with"),
        (damaged(classes="ab"), "'ab' should be a list"),
        (damaged(classes=[1]), "1 should be a text"),
        (damaged(exits=True), "True should be a whole number"),
        (averaged(True), "True should be a finite number"),
        (averaged(float("nan")), "NaN is no number of JSON"),
        (damaged(preprocessing={}), "'channels' is missing"),
        (reshaped, "segment-2.onnx does not take the outputs of segment-1.onnx"),
        (retyped, "tensors are of float32, float16, int64, int32, bool, not 'object'"),
        (carrying, "images become (1, 8, 8), but the first segment takes"),
        (resized, "images become (1, 9, 9), but the first segment takes ((1, 8, 8),)"),
    ],
)
def test_a_manifest_that_says_what_cannot_be(
    exported: Any, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    result = json.loads((exported.folder / "manifest.json").read_text())
    change(result)
    with pytest.raises(ValueError) as caught:
        parse(signed(result), "b/manifest.json")
    assert says in str(caught.value) and str(caught.value).startswith("b/manifest.json ")


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{", b"[" * 100_000, b"{}"])
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^m\.json is (damaged: it is not JSON|not the manifest of a bundle)"):
        parse(data, "m.json")


def test_a_manifest_reads_as_it_was_written(exported: Any) -> None:
    assert parse(render(exported.manifest).encode(), "m") == exported.manifest


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    for folder, says in ((tmp_path, r"it has no manifest\.json"), (tmp_path / "nowhere", "the folder does not exist")):
        with pytest.raises(ValueError, match=f"is not a bundle: {says}"):
            open_bundle(folder)


def test_a_policy_for_other_segments(copied: Path) -> None:
    values = {**json.loads((copied / "policy.json").read_text()), "enabled": [True] * 4}
    policy = json.dumps({key: value for key, value in values.items() if key != "digest"}).encode()
    (copied / "policy.json").write_bytes(policy)
    result = json.loads((copied / "manifest.json").read_text())
    result["files"]["policy.json"] = hashlib.sha256(policy).hexdigest()
    (copied / "manifest.json").write_bytes(signed(result))
    with pytest.raises(ValueError, match=r"policy\.json enables other exits than .*manifest.json has segments for"):
        open_bundle(copied)


def test_only_the_segments_that_run_have_to_be_there(copied: Path) -> None:
    (copied / "segment-3.onnx").unlink()
    assert len(open_bundle(copied, end=2).segments) == 2
    (copied / "segment-1.onnx").unlink()
    assert len(open_bundle(copied, begin=1, end=2).segments) == 1


@pytest.mark.parametrize(("begin", "end", "range"), [(3, None, "4 to 3"), (0, 4, "1 to 4"), (2, 1, "3 to 1")])
def test_segments_that_do_not_exist(exported: Any, begin: int, end: int | None, range: str) -> None:
    with pytest.raises(ValueError, match=f"has 3 segments: there are none from {range}"):
        open_bundle(exported.folder, begin=begin, end=end)


ANSWER = """
import sys
import numpy as np
from offramp.bundle.read import open_bundle
bundle = open_bundle(sys.argv[1])
pixels = np.load(sys.argv[2])
found = bundle.answer(bundle.manifest.preprocessing.normalise(pixels))
np.savez(sys.argv[3], logits=found.logits, exit=found.exit)
"""


def test_it_answers_the_same_where_torch_does_not_exist(
    exported: Any, without_torch: Callable[..., str], tmp_path: Path
) -> None:
    pixels = exported.data.splits["cal"].source.batch(exported.data.splits["cal"].indices[:20])
    np.save(tmp_path / "pixels.npy", pixels)
    without_torch(ANSWER, exported.folder, tmp_path / "pixels.npy", tmp_path / "found.npz")
    bundle = open_bundle(exported.folder)
    wanted = bundle.answer(bundle.manifest.preprocessing.normalise(pixels))
    with np.load(tmp_path / "found.npz") as result:
        assert result["exit"].tolist() == wanted.exit.tolist()
        np.testing.assert_allclose(result["logits"], wanted.logits, atol=1e-5)


def test_the_manifest_can_be_read_alone(exported: Any) -> None:
    assert read_manifest(exported.folder).classes == exported.data.classes
