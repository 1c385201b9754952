"""The commands of docs/commands.md for a model of one's own are understood, and those that need no weights run."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import split as words_of
from typing import Any

import pytest

from offramp.cli import app, main
from offramp.cli._argv import rewrite
from offramp.cli._options import config_of
from offramp.config import resolve

SECTION = (
    (Path(__file__).parents[1] / "docs/commands.md")
    .read_text(encoding="utf-8")
    .split("## Your own model")[1]
    .split("\n## ")[0]
)
COMMANDS = [
    words_of(command)[1:] for command in re.findall(r"^\$ (offramp .*)$", SECTION.replace("\\\n", " "), re.MULTILINE)
]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the document's my_nets.py."""
    (tmp_path / "my_nets.py").write_text(SECTION.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_nets", None)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[2])
def test_they_run_or_are_understood(words: list[str], there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "--weights" not in words:
        with pytest.raises(SystemExit) as left:
            main(words)
        assert not left.value.code, capsys.readouterr().err
        return
    parse: Callable[..., Any] = app().parse_args
    _, bound, _ = parse(rewrite(words), exit_on_error=False, print_error=False)
    config = bound.arguments["config"]
    assert config.weights == Path("resnet18.pth")
    assert resolve(config_of(config, bound.arguments.get("option")))
