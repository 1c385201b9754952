"""offramp predict: every image is answered or named, as a table, JSON or CSV, where torch does not exist."""

import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import offramp as package
from offramp.bundle import predict
from offramp.bundle.manifest import render
from offramp.bundle.read import open_bundle, read_manifest
from offramp.bundle.write import write
from offramp.data.augment import normalise
from offramp.data.load import load
from offramp.early_exit.policy import ExitPolicy
from offramp.early_exit.runtime import Answer
from offramp.net import Branch, Head, MultiExitNet

Offramp = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three exits on digits, untrained."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(1 if n == 0 else 6, 6, 3, padding=1), nn.ReLU()) for n in range(3)]
    net = MultiExitNet(stages, [Branch(nn.Identity(), Head(6, 10)) for _ in range(3)])
    data = load("digits")
    with torch.inference_mode():
        pixels = torch.from_numpy(data.splits["cal"].source.batch(data.splits["cal"].indices))
        scores = net(normalise(pixels, data.mean, data.std)).logits.softmax(2).amax(2)
    thresholds = tuple(scores.quantile(0.6, 1).tolist())
    folder = tmp_path_factory.mktemp("predict") / "b"
    write(folder, net, ExitPolicy(thresholds=thresholds, enabled=(True,) * 3), data, images=100)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 digits as files of three kinds, in two folders, beside a text and a hidden file."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    split = load("digits").splits["test"]
    for number, pixels in enumerate(split.source.batch(split.indices[:24])):
        name = f"{number:02d}.{('png', 'webp', 'jpg')[number % 3]}"
        file = folder / ("more" if number >= 20 else ".") / name
        Image.fromarray(pixels[0]).save(file, **({"lossless": True} if number % 3 == 1 else {}))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def expected(bundle: Path, files: list[Path]) -> Any:
    opened = open_bundle(bundle)
    reading = opened.manifest.preprocessing
    return opened.answer(reading.normalise(np.stack([reading.read(file) for file in files])))


def test_every_image_of_a_folder_is_answered(offramp: Offramp, bundle: Path, pictures: Path) -> None:
    files = sorted(pictures.glob("*.*g")) + sorted(pictures.glob("*.webp"))
    files = sorted(file for file in files if not file.name.startswith(".")) + sorted((pictures / "more").iterdir())
    wanted = expected(bundle, files)
    assert len(set(wanted.exit.tolist())) == 3, "a policy that uses every exit tests more"
    for size in (1, 7, 100):
        ran = offramp("predict", bundle, pictures, "--json", "--batch-size", size)
        assert ran.status == 0 and not ran.err
        rows = ran.json["images"]
        assert [row["image"] for row in rows] == [str(file) for file in files]
        assert [row["exit"] for row in rows] == (wanted.exit + 1).tolist()
        assert [row["class"] for row in rows] == wanted.logits.argmax(1).tolist()
        assert [row["label"] for row in rows] == [str(label) for label in wanted.logits.argmax(1)]
        assert [row["final"] for row in rows] == (wanted.exit == 2).tolist()
        powers = np.exp(wanted.logits)
        chances = (powers / powers.sum(1, keepdims=True)).max(1)
        assert [row["probability"] for row in rows] == pytest.approx(chances, abs=1e-5)
        assert all(row["ms"] > 0 and row["error"] is None for row in rows)
    assert (ran.json["exits"], ran.json["runtime"], ran.json["device"]) == (3, "onnx", "cpu")
    assert ran.json["digest"] == open_bundle(bundle).manifest.digest


def test_the_table_and_csv_say_the_same(offramp: Offramp, bundle: Path, pictures: Path) -> None:
    rows = offramp("predict", bundle, pictures, "--json").json["images"]
    ran = offramp("predict", bundle, pictures, "--csv")
    actual = list(csv.DictReader(io.StringIO(ran.out)))
    assert [(row["image"], row["label"], int(row["exit"])) for row in actual] == [
        (row["image"], row["label"], row["exit"]) for row in rows
    ]
    assert {row["device"] for row in actual} == {"cpu"}
    ran = offramp("predict", bundle, pictures)
    lines = [line.split() for line in ran.out.splitlines()[1:] if line.strip()]
    assert [line[:2] for line in lines] == [[row["image"], row["label"]] for row in rows]
    leaves = ["final" if row["final"] else f"exit {row['exit']}" for row in rows]
    assert [" ".join(line[3:-1]) for line in lines] == leaves
    assert [float(line[2]) for line in lines] == [round(100 * row["probability"], 2) for row in rows]


@pytest.mark.parametrize("form", ["--json", "--csv", None])
def test_bad_images_are_named_and_the_rest_is_answered(
    offramp: Offramp, bundle: Path, pictures: Path, tmp_path: Path, form: str | None
) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((pictures / "00.png").read_bytes()[:-30])
    Image.new("L", (9000, 9000)).save(tmp_path / "bomb.png")
    (tmp_path / "none").mkdir()
    names = ["text.png", "empty.jpg", "cut.png", "bomb.png", "nowhere.png"]
    good = [pictures / "00.png", pictures / "01.webp"]
    words = [good[0], *(tmp_path / name for name in names), good[1], tmp_path / "none"]
    ran = offramp("predict", bundle, *words, *([form] if form else []), "--batch-size", 2)
    assert ran.status == 1
    said = ran.err.splitlines()
    assert len(said) == 7 and said[-1] == "offramp: 6 of 8 could not be read; the others were predicted"
    for name, reason in zip(
        [*names, "none"],
        [
            "no PNG, JPEG",
            "it is empty",
            "truncated",
            "it is 9000x9000",
            "the file does not exist",
            "contains no images",
        ],
    ):
        assert any(line.startswith(f"offramp: {tmp_path / name}: ") and reason in line for line in said), (name, said)
    if form == "--json":
        rows = {row["image"]: row for row in ran.json["images"]}
        assert len(rows) == 8 and all((row["error"] is None) == (Path(image) in good) for image, row in rows.items())
        assert all(row["label"] is not None for row in rows.values() if row["error"] is None)
    elif form == "--csv":
        actual = {row["image"]: row for row in csv.DictReader(io.StringIO(ran.out))}
        assert "truncated" in actual[str(tmp_path / "cut.png")]["error"] and actual[str(good[1])]["label"]
    else:
        assert [line.split()[0] for line in ran.out.splitlines()[1:] if line] == list(map(str, good))


@pytest.mark.parametrize("number", [1, 2])
def test_a_split_gives_the_same_answers(
    offramp: Offramp, bundle: Path, pictures: Path, tmp_path: Path, number: int
) -> None:
    whole = {row["image"]: row for row in offramp("predict", bundle, pictures, "--json").json["images"]}
    state = tmp_path / "cut.npz"
    words = ("--first", number, "--state", state, "--batch-size", 5)
    here = offramp("predict", bundle, pictures, *words, "--json").json
    waiting = [row["image"] for row in here["images"] if row["exit"] is None]
    assert waiting == [image for image, row in whole.items() if row["exit"] > number] and waiting
    assert here["waiting"] == len(waiting) and here["state"] == str(state)
    there = offramp("predict", bundle, "--from", number, "--state", state, "--batch-size", 4, "--json").json
    assert [row["image"] for row in there["images"]] == waiting
    for row in [*there["images"], *(row for row in here["images"] if row["exit"] is not None)]:
        for key in ("label", "class", "exit", "final"):
            assert row[key] == whole[row["image"]][key]
        assert row["probability"] == pytest.approx(whole[row["image"]]["probability"], abs=1e-5)
    table = offramp("predict", bundle, pictures, *words).out
    following = f"`offramp predict {bundle} --from {number} --state {state}`"
    assert f"{len(waiting)} of 24 continue with {following}" in table.replace("\n", " ") and table.count(
        "continues"
    ) == len(waiting)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no images were given: name image files or folders"),
        (("a.png", "--json", "--csv"), "--json and --csv cannot be combined"),
        (("a.png", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("a.png", "--first", "1", "--from", "1"), "--first and --from cannot be combined"),
        (("a.png", "--first", "1"), "--first must be a number of segments of at least 1, and needs --state, a file"),
        (("a.png", "--first", "0", "--state", "s"), "--first must be a number of segments of at least 1"),
        (("--from", "-1", "--state", "s"), "--from must be a number of segments of at least 1"),
        (("a.png", "--state", "s"), "--state needs --first or --from, a number of segments"),
        (("a.png", "--from", "1", "--state", "s"), "--from continues with the images in --state"),
        (("a.png", "--first", "3", "--state", "s"), "--first 3 are all segments of"),
        (("a.png", "--first", "4", "--state", "s"), "has 3 segments: there are none from 1 to 4"),
        (("--from", "3", "--state", "s"), "has 3 segments: there are none from 4 to 3"),
        (("--from", "1", "--state", "nowhere.npz"), "there is no such state file: nowhere.npz"),
    ],
)
def test_words_that_make_no_sense(offramp: Offramp, bundle: Path, words: tuple[str, ...], says: str) -> None:
    ran = offramp("predict", bundle, *words)
    assert ran.status in (1, 2) and says in ran.err and ran.err.count("\n") == 1


def test_python_predicts_the_same(offramp: Offramp, bundle: Path, pictures: Path, tmp_path: Path) -> None:
    seen: list[package.Prediction] = []
    result = package.predict(bundle, [pictures], batch_size=5, each=seen.append)
    wanted = offramp("predict", bundle, pictures, "--batch-size", 5, "--json").json
    untimed = [{**row, "ms": None} for row in wanted["images"]]
    assert tuple(seen) == result.images and result.failed == result.continuing == 0
    assert {**result.as_dict(), "images": [{**row, "ms": None} for row in result.as_dict()["images"]]} == {
        **wanted,
        "images": untimed,
    }
    first = package.predict(bundle, [pictures], first=1, state=tmp_path / "s.npz")
    rest = package.predict(bundle, from_=1, state=tmp_path / "s.npz")
    assert first.continuing == len(rest.images) > 0 and rest.continuing == 0
    with pytest.raises(ValueError, match=r"^first and from_ cannot be combined"):
        package.predict(bundle, [pictures], first=1, from_=1)


def test_what_could_not_be_read_is_told_in_plain_words(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:700])
    ran = offramp("predict", bundle, tmp_path / "cut.jpg")
    assert ran.status == 1 and "Error" not in ran.err
    assert ran.err.splitlines()[-1] == "offramp: 1 of 1 could not be read"


def test_the_runtime_that_was_named_is_used(
    offramp: Offramp, bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    ran = offramp("predict", bundle, pictures, "--runtime", "openvino")
    assert ran.status == 1 and "OpenVINO is not installed: pip install 'offramp[openvino]'" in ran.err


def test_large_logits_are_no_hindrance(bundle: Path) -> None:
    answer = Answer(np.array([[1000.0, 0.0], [-2000.0, -1000.0]]), np.zeros(2, int), np.zeros(2))
    assert list(predict._best(answer)) == [(0, 1.0), (1, 1.0)]


def test_a_run_is_no_bundle(offramp: Offramp, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("net: resnet18\n")
    ran = offramp("predict", tmp_path, "a.png")
    says = f"{tmp_path} is a run, not a bundle: `offramp export {tmp_path} --out DIR` creates one from it"
    assert (ran.status, ran.err) == (1, f"offramp: {says}\n")


def test_state_of_another_bundle(offramp: Offramp, bundle: Path, pictures: Path, tmp_path: Path) -> None:
    assert offramp("predict", bundle, pictures, "--first", 1, "--state", tmp_path / "s.npz").status == 0
    copy = Path(shutil.copytree(bundle, tmp_path / "other"))
    other = replace(read_manifest(bundle), provenance={"run": "another"})
    (copy / "manifest.json").write_text(render(other))
    ran = offramp("predict", copy, "--from", 1, "--state", tmp_path / "s.npz")
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert f"s.npz was written by another bundle than {copy}: both sides need the same" in ran.err


def test_sixteen_bits_of_grey_are_scaled(offramp: Offramp, bundle: Path, tmp_path: Path) -> None:
    levels = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "8.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    one, other = offramp("predict", bundle, tmp_path / "8.png", tmp_path / "16.png", "--json").json["images"]
    assert (one["label"], one["probability"]) == (other["label"], other["probability"])
    assert open_bundle(bundle).manifest.preprocessing.read(tmp_path / "16.png").tolist() == [levels.tolist()]


def test_a_long_name_is_not_cut_off(
    offramp: Offramp, bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    file = tmp_path / f"{'long-' * 20}[bold].png"
    file.write_bytes((pictures / "00.png").read_bytes())
    out = offramp("predict", bundle, file).out
    assert str(file) in "".join(line.split(" ")[0] for line in out.splitlines()[1:]) and "…" not in out


def alone(*words: str, **more: Any) -> "subprocess.Popen[bytes]":
    """The program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), **more}
    program = [sys.executable, "-c", "from offramp.cli import main; main()", "predict", *words]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_a_reader_that_has_seen_enough(bundle: Path, pictures: Path, form: str) -> None:
    with alone(str(bundle), str(pictures), *[str(pictures / "00.png")] * 300, form) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.parametrize("form", ["--csv", "--json", None])
def test_names_that_the_terminal_cannot_show(bundle: Path, pictures: Path, tmp_path: Path, form: str | None) -> None:
    names = [os.fsencode(tmp_path) + name for name in ("/grün.png".encode(), b"/gr\xfcn.png")]
    for name in names:
        Path(os.fsdecode(name)).write_bytes((pictures / "00.png").read_bytes())
    words = [str(bundle), *map(os.fsdecode, names), *([form] if form else [])]
    with alone(*words, PYTHONIOENCODING="ascii", PYTHONUTF8="1") as process:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"") and out.count(b".png") == 2


def test_a_batch_larger_than_there_are_images(offramp: Offramp, bundle: Path, pictures: Path) -> None:
    ran = offramp("predict", bundle, pictures, "--batch-size", 10**12, "--json")
    assert ran.status == 0 and len(ran.json["images"]) == 24


def test_a_damaged_bundle_is_one_sentence(offramp: Offramp, bundle: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for file in bundle.iterdir():
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "b" / "segment-2.onnx").unlink()
    ran = offramp("predict", tmp_path / "b", pictures, "--json")
    assert ran.status == 1 and "segment-2.onnx is missing" in ran.json["error"]


def test_it_runs_where_torch_does_not_exist(
    offramp: Offramp, without_torch: Callable[..., str], bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    wanted = offramp("predict", bundle, pictures, "--csv").out
    for more in ((), ("--first", 1, "--state", tmp_path / "s.npz")):
        printed = without_torch("from offramp.cli import main\nmain()", "predict", bundle, pictures, "--csv", *more)
        rows = zip(csv.DictReader(io.StringIO(printed)), csv.DictReader(io.StringIO(wanted)), strict=True)
        assert all(actual["label"] in (row["label"], "" if more else None) for actual, row in rows)


def test_names_that_are_not_utf8_are_shown_with_their_bytes(
    bundle: Path, pictures: Path, tmp_path: Path, offramp: Offramp
) -> None:
    shutil.copy(pictures / "00.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xe9.png"))).write_text("no image")
    shown = str(tmp_path / "caf\\xe9.png")
    for words in ((), ("--csv",), ("--json",)):
        ran = offramp("predict", *words, bundle, tmp_path)
        assert ran.status == 1 and "bad\\xe9.png: no PNG" in ran.err
        ran.out.encode()
        if words == ("--json",):
            assert [row["image"] for row in ran.json["images"]] == [str(tmp_path / "bad\\xe9.png"), shown]
        elif words:
            assert [row["image"] for row in csv.DictReader(io.StringIO(ran.out))][1] == shown
        else:
            assert shown in ran.out
