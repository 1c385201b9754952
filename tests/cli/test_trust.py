"""Opening somebody's run runs nothing of it: code is imported only for runs that were trained here or are trusted."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from offramp import trust
from offramp.runs import load_run
from offramp.train.run_dir import claim

NET = """
import pathlib; pathlib.Path({mark!r}).touch()
from torch import nn
def f(classes, channels=1):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFRAMP_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("evil"):
            del sys.modules[name]


def evil(folder: Path, name: str = "evil") -> Path:
    """A module that leaves a mark when it is imported; the mark's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(NET.format(mark=str(folder / "PWNED")))
    return folder / "PWNED"


def forget() -> None:
    sys.modules.pop("evil", None)
    sys.path_importer_cache.clear()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"net": "resnet18", "branch": "sketch"}, ()),
        ({"net": "python:a:f"}, ("python:a:f",)),
        ({"net": "resnet18,python:a:f, python:b:g"}, ("python:a:f", "python:b:g")),
        ({"method": "python:a", "branch": "python:a", "data": "python:b"}, ("python:a", "python:b")),
        ({"net": {"name": "python:a:f"}, "more": [["python:b"]]}, ("python:a:f", "python:b")),
        ({"net": "timm:resnet18", "data": "folder:/python:x"}, ()),
    ],
)
def test_what_imports_code_is_found_wherever_it_stands(values: dict[str, Any], names: tuple[str, ...]) -> None:
    assert trust.code_names(values) == names


def test_a_run_that_names_no_code_needs_no_trust(state: Path, tmp_path: Path) -> None:
    trust.check({"net": "resnet18"}, tmp_path)
    trust.remember({"net": "resnet18"})
    assert not state.exists()


def test_what_was_claimed_here_is_trusted_whatever_the_order_of_its_keys(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = evil(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    config = {"net": "python:evil:f", "milestones": (0.5,)}
    with pytest.raises(trust.NotTrusted, match=r"was not trained here, and opening it would run code .*python:evil:f"):
        trust.check(config, tmp_path / "run")
    claim(tmp_path / "run", config | {"milestones": [0.5]}, False)
    trust.check({"milestones": [0.5], "net": "python:evil:f"}, tmp_path / "run")
    with pytest.raises(trust.NotTrusted, match=r"offramp trust .*/run`$"):
        trust.check({**config, "seed": 1}, tmp_path / "run")
    assert not mark.exists() and "evil" not in sys.modules


def test_the_same_configuration_with_another_file_is_not_trusted(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil(tmp_path / "mine")
    evil(tmp_path / "downloaded")
    monkeypatch.chdir(tmp_path / "mine")
    trust.grant({"net": "python:evil:f"})
    monkeypatch.chdir(tmp_path / "downloaded")
    with pytest.raises(trust.NotTrusted, match=r"from .*downloaded/evil.py, but what is trusted is .*mine/evil.py"):
        trust.check({"net": "python:evil:f"}, tmp_path)


def test_code_in_packages_is_found_without_importing_it(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "evils" / "deep"
    marks = [evil(package, "evil"), evil(package, "__init__"), evil(package.parent, "__init__")]
    monkeypatch.chdir(tmp_path)
    assert trust.grant({"net": "python:evils.deep.evil:f"}) == {"python:evils.deep.evil:f": str(package / "evil.py")}
    assert not any(mark.exists() for mark in marks)
    with pytest.raises(ValueError, match=r"there is no module 'evils\.none' in"):
        trust.grant({"net": "python:evils.none:f"})


def test_a_damaged_record_trusts_nothing(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil(tmp_path)
    monkeypatch.chdir(tmp_path)
    trust.grant({"net": "python:evil:f"})
    next(state.rglob("*.json")).write_text("[")
    with pytest.raises(trust.NotTrusted):
        trust.check({"net": "python:evil:f"}, tmp_path)


def test_without_a_home_folder_nothing_is_recorded_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*words: str) -> Path:
        raise ValueError("this user has no home folder")

    monkeypatch.setattr(trust, "user_folder", none)
    trust.remember({"net": "python:json:dumps"})
    with pytest.raises(trust.NotTrusted):
        trust.check({"net": "python:json:dumps"}, Path("run"))
    with pytest.raises(ValueError, match="no home folder"):
        trust.grant({"net": "python:json:dumps"})


@pytest.mark.usefixtures("state", "clean_imports")
def test_the_way_of_a_run_from_there_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offramp: Callable[..., Any], trained: Path
) -> None:
    """The input of the report: a run's configuration names code that lies beside it."""
    folder = tmp_path / "downloaded"
    shutil.copytree(trained, folder)
    (folder / "result.json").unlink()  # it knows the configuration that was trained
    config = {
        key: value for key, value in yaml.safe_load((folder / "config.yaml").read_text()).items() if key[:4] != "net."
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"net": "python:evil:f", "width": None}))
    mark = evil(folder)
    monkeypatch.chdir(folder)
    for verb in ("evaluate", "calibrate", "report", "curves", "analyse", "export", "deploy", "bench"):
        more = {"calibrate": ("--macs", "0.5"), "export": ("--out", "b"), "deploy": ("--out", "d", "--keep", "1")}
        ran = offramp(verb, ".", *more.get(verb, ()))
        assert ran.status == 1 and ran.err.count("\n") == 1 and "`offramp trust .`, or add --trust" in ran.err, verb
        assert not mark.exists() and str(folder) not in sys.path
    ran = offramp("train", "--out", ".", "--resume")
    assert ran.status and "`offramp trust .`" in ran.err and not mark.exists()
    with pytest.raises(trust.NotTrusted):
        load_run(folder)
    ran = offramp("trust", ".", "--json")
    assert ran.json["modules"] == {"python:evil:f": str(folder / "evil.py")} and not mark.exists()
    offramp("evaluate", ".")
    assert mark.exists()
    forget()
    mark.unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"net": "python:evil:f", "width": None, "seed": 7}))
    assert "was not trained here" in offramp("evaluate", ".").err and not mark.exists()
    assert "was not trained here" not in offramp("evaluate", ".", "--trust").err and mark.exists()


def test_a_run_without_code_says_so(offramp: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("net: resnet18\n")
    assert "names no code, so that it needs no trust" in offramp("trust", tmp_path).out


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "code_revision"])
def test_code_of_others_is_not_loaded_by_options(offramp: Callable[..., Any], key: str) -> None:
    ran = offramp("info", "--net", "transformers:vit", f"--net.{key}", "true")
    assert ran.status == 2 and f"--net.{key}: code is not downloaded" in ran.err
