"""Run the program as a user does: its words in, its exit status and what it printed out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_nets import NET

from offramp.cli import main
from offramp.train.run_dir import read_config, read_result, write_result
from offramp.trust import remember


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def offramp(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*words: object) -> Ran:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return Ran(left.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def succeed() -> Callable[..., None]:
    """The program where it must succeed, for what several tests share."""

    def run(*words: object) -> None:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        assert not left.value.code

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    """A small network with four exits, trained for two epochs on digits; nobody may change its files."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = "--data digits --holdout 0.3 --epochs 2 --batch-size 32 --precision 32 --json"
    succeed("train", *NET, *words.split(), "--method", "muse", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    """The same network trained alone, on the same images; nobody may change its files."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    words = "--data digits --holdout 0.3 --epochs 2 --batch-size 32 --precision 32 --json"
    succeed("train", *NET, *words.split(), "--method", "vanilla", "--out", folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it that a test may change, outside of the test's own folder."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "run"))


@pytest.fixture(scope="session")
def reconfigure() -> Callable[[Path, str, str], None]:
    """Makes a run as if it had been trained with another value of an option, such as `holdout: 0`."""

    def run(folder: Path, old: str, new: str) -> None:
        result, config = read_result(folder), (folder / "config.yaml").read_text()
        assert result is not None and config.count(f"\n{old}\n") == 1
        (folder / "config.yaml").write_text(config.replace(f"\n{old}\n", f"\n{new}\n"))
        remember(read_config(folder))
        write_result(folder, result)

    return run
