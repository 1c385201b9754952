"""offramp serve: its words; what it does is tested in tests/serve."""

import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from offramp.cli.serve import _token, serve

Offramp = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def test_every_option_is_documented() -> None:
    section = (ROOT / "docs/commands.md").read_text().split("\n## serve\n")[1].split("\n## ")[0]
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters} - {"--bundles"}
    assert set(re.findall(r"--[a-z][a-z-]*", section)) == options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name at least one bundle"),
        (("nowhere",), "there is no folder nowhere"),
        (("{bundle}", "--port", "70000"), "--port must be from 0 to 65535, got 70000"),
        (("{bundle}", "--max-batch", "0"), "--max-batch must be at least 1, got 0"),
        (("{bundle}", "--deadline-ms", "0"), "--deadline-ms must be a positive number, got 0"),
        (("{bundle}", "--token-file", "nowhere"), "there is no file nowhere"),
        (("{bundle}", "--token-file", "{bundle}/two-lines"), "/two-lines must be printable ASCII text, in one line"),
        (("{bundle}", "--cors", "evil.example"), "--cors must be origins such as https://example.org"),
        (("{bundle}", "--replicas", "2"), "--replicas is for --engine ray: --engine local has --workers"),
        (("{bundle}", "--runtime", "tensorrt"), "tensorrt"),
        (("{bundle}", "--runtime", "onnx-cuda", "--engine", "ray"), "--runtime onnx-cuda is for --engine local"),
        (("{bundle}", "--connections", "0"), "--connections must be at least 1, got 0"),
        (("{bundle}", "--address", "a:1"), "--address a:1 is that of a Ray cluster: add --engine ray"),
        (("{bundle}", "--engine", "ray", "--workers", "2"), "--workers is for --engine local: with --engine ray"),
        (("{bundle}", "--engine", "ray", "--queue", "0"), "--queue must be at least 1, got 0"),
        (("nowhere", "--engine", "ray"), "there is no folder nowhere"),
        (("{bundle}", "--host", ""), "--host must be an address of this machine"),
    ],
)
def test_words_that_make_no_sense(
    offramp: Offramp, tmp_path: Path, words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.cli.serve._engine", nullcontext)  # the words are checked before Ray starts
    (tmp_path / "two-lines").write_text("a\nb")
    ran = offramp("serve", *(word.format(bundle=tmp_path) for word in words))
    assert ran.status == 2 and says in ran.err and ran.err.count("\n") == 1


def test_a_folder_without_bundle(offramp: Offramp, tmp_path: Path) -> None:
    ran = offramp("serve", tmp_path, "--port", "0")
    assert ran.status == 1 and "is not a bundle: it has no manifest.json" in ran.err and ran.err.count("\n") == 1


def test_what_is_not_installed(offramp: Offramp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ran = offramp("serve", tmp_path, "--port", "0")
    assert ran.status == 1 and "serving needs uvicorn: pip install 'offramp[serve]'" in ran.err


def test_a_token_from_a_pipe() -> None:
    """As a shell's <(command) gives it."""
    reading, writing = os.pipe()
    os.write(writing, b"secret\n")
    os.close(writing)
    assert _token(Path(f"/dev/fd/{reading}")) == "secret"
    os.close(reading)
