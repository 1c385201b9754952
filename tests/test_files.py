"""Files of runs and bundles: what cannot be read or written is named in one sentence."""

import os
from pathlib import Path

import pytest

from offramp.files import read_json, read_text, read_yaml, reserve, user_folder, write_errors

FULL = Path("/dev/full")
DOUBLING = "a: &a [1, 1]\n" + "".join(f"{chr(k)}: &{chr(k)} [*{chr(k - 1)}, *{chr(k - 1)}]\n" for k in range(98, 120))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is damaged: it is not JSON"),
        (b"\xff", "is damaged: it is not text"),
        (b"[]", r"is damaged: its content must be an object, got \[\]"),
        (b"[" * 100_000, "is damaged: it is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is damaged: it is not JSON"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json {says}"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "it is not YAML: line 1, column 5"),
        ("a: 2001-13-45", "it is not YAML: ValueError: month must be in 1..12"),
        ("a: !!timestamp x", "it is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "it is not YAML"),
        ("[" * 5000, "it is not YAML"),
        ("a: &a [*a]", "it is more than 100,000 values"),
        (DOUBLING, "it is more than 100,000 values"),
        ("3", "it contains no options"),
    ],
)
def test_yaml_that_is_none(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"a.yaml is damaged: {says}"):
        read_yaml(tmp_path / "a.yaml")


def test_a_file_that_is_absent_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.json cannot be read: No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="it has 6 bytes, more than the 5 that it may have"):
        read_text(tmp_path / "a.json", 5)


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    says = f"{tmp_path / 'a'} cannot be written: No space left on device; .* MB are free there"
    with pytest.raises(OSError, match=says), write_errors(tmp_path / "a"), FULL.open("wb", buffering=0) as file:
        file.write(b"1")


def test_a_user_without_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "OFFRAMP_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123_456_789)
    with pytest.raises(ValueError, match="no home folder: set OFFRAMP_STATE to a folder"):
        user_folder("OFFRAMP_STATE", "XDG_STATE_HOME", ".local/state")
    monkeypatch.setenv("OFFRAMP_STATE", "/a")
    assert user_folder("OFFRAMP_STATE", "XDG_STATE_HOME", ".local/state") == Path("/a")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space")
def test_reserved_space_is_really_taken(tmp_path: Path) -> None:
    """A file that is merely long has no blocks: writing it through a mapping on a full disk is a bus error."""
    with (tmp_path / "file").open("wb") as file:
        reserve(file.fileno(), 1 << 20)
        stat = os.fstat(file.fileno())
    assert stat.st_size == 1 << 20 and stat.st_blocks * 512 >= 1 << 20
