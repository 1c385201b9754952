"""The Python of README and the guides runs block after block in one namespace, as if typed into a notebook."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from offramp.runs.reporting import Silent

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALLER = {
    "README.md": {
        'width=16, branch="sketch"': 'width=4, branch="linear"',
        "epochs=15": "epochs=1",
        "macs=0.7": "macs=1.0",
    },
    "docs/python.md": {
        "width=8, branch": "width=4, branch",
        "epochs=5": "epochs=1",
        "epochs=2": "epochs=1",
        "width=8, method": "width=4, method",
        "macs=0.8": "macs=1.0",
        'methods=["joint", "muse"]': 'methods=["joint"]',
    },
    "docs/extending.md": {},
}
"""What the quick test writes instead: narrower networks, fewer epochs and runs, and a goal that these can reach."""


def code_of(document: str) -> list[str]:
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def typed(document: str, blocks: list[str]) -> dict[str, object]:
    """The namespace after all blocks of a document."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, code in enumerate(blocks, 1):
        exec(compile(code, f"{document}, block {number}", "exec"), namespace)
    return namespace


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_origin: None) -> Iterator[Path]:
    """A working directory with two images, and the example plugin at hand as if it were installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples" / "plugin")
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (8, 8), (90, 90, 90)).save(tmp_path / name)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "offramp_example"]:
        del sys.modules[name]  # else tests that follow find a plugin imported that is only listed


@pytest.mark.parametrize("document", SMALLER)
def test_the_python_of_a_document_runs(
    document: str, notebook: Path, short_resnet18: None, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = code_of(document)
    assert blocks
    for printed, smaller in SMALLER[document].items():
        assert any(printed in code for code in blocks), f"{document} does not contain {printed}"
        blocks = [code.replace(printed, smaller) for code in blocks]
    _assert_shown(document, typed(document, blocks), notebook, capsys.readouterr().out)


@pytest.mark.full
@pytest.mark.parametrize("document", SMALLER)
def test_the_python_of_a_document_runs_as_printed(
    document: str, notebook: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _assert_shown(document, typed(document, code_of(document)), notebook, capsys.readouterr().out)


def _assert_shown(document: str, namespace: dict[str, object], folder: Path, out: str) -> None:
    """What the blocks print and leave behind."""
    if document == "README.md":
        assert "ensemble" in out and (folder / "bundle/manifest.json").is_file()
    if document == "docs/python.md":
        assert ("early exit, measured" in out and "goal: at most" in out and "difference" in out) or "joint" in out
        assert "(4, 359, 10) (359,) (359,)" in out and "torch.Size([4, 8, 10])" in out
        assert "holdout must be a share in [0, 1), got 1.5" in out
        assert isinstance(namespace["EpochPrinter"], type) and issubclass(namespace["EpochPrinter"], Silent)
        bundle = namespace["bundle"]
        assert [each.error for each in bundle.predict(["a.jpg", "b.png"])] == [None, None]  # type: ignore[attr-defined]
