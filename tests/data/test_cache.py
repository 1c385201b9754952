"""The cache: found by content, rebuilt when damaged, done without where nothing can be written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from offramp.data import _cache
from offramp.data._cache import cached


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


class Counter:
    """Fills with a number of its own each time, so that one sees where pixels come from."""

    def __init__(self):
        self.calls = 0

    def __call__(self, allocate):
        self.calls += 1
        pixels = allocate(3, 1, 2, 2)
        pixels[:] = self.calls
        return np.array([0, 1, 0]), {"parts": {"train": 3}}


def get(file, fill, **settings):
    return cached("a/b:c", [("f", file)], settings, fill, None)


def test_found_again_by_content_name_and_settings(file, own_cache):
    fill = Counter()
    first = get(file, fill)
    assert isinstance(first.pixels, np.memmap)
    assert (first.pixels == 1).all() and first.facts == {"parts": {"train": 3}, "duplicates": [[0, 1, 2]]}
    assert (get(file, fill).pixels == 1).all() and fill.calls == 1
    assert (get(file, fill, size=8).pixels == 2).all()
    file.write_bytes(b"CONTENT")
    assert (get(file, fill).pixels == 3).all()
    assert all(not entry.name.startswith(".") for entry in own_cache.iterdir())


def test_writing_into_the_pixels_does_not_change_the_cache(file):
    fill = Counter()
    get(file, fill).pixels[:] = 9
    assert (get(file, fill).pixels == 1).all()


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "gone", "folder"])
def test_a_damaged_entry_is_made_anew(file, own_cache, name, damage):
    fill = Counter()
    get(file, fill)
    broken = next(own_cache.iterdir()) / name
    content = broken.read_bytes()
    broken.unlink()
    if damage == "folder":
        broken.mkdir()
    elif damage != "gone":
        changed = content[:-1] + bytes([content[-1] ^ 1])
        broken.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "changed": changed}[damage])
    assert (get(file, fill).pixels == 2).all()
    assert (get(file, fill).pixels == 2).all() and fill.calls == 2
    assert len(list(own_cache.iterdir())) == 1


def test_facts_of_an_entry_are_covered_too(file, own_cache):
    fill = Counter()
    get(file, fill)
    meta = next(own_cache.iterdir()) / "meta.json"
    value = json.loads(meta.read_text())
    value["facts"]["parts"]["train"] = 2
    meta.write_text(json.dumps(value))
    get(file, fill)
    assert fill.calls == 2


def test_pickled_arrays_are_not_read(file, own_cache):
    fill = Counter()
    get(file, fill)
    np.save(next(own_cache.iterdir()) / "labels.npy", np.array([{}, {}], dtype=object))
    assert (get(file, fill).pixels == 2).all()


def test_a_failure_leaves_nothing(file, own_cache):
    def fail(allocate):
        allocate(1000, 1, 2, 2)
        raise ValueError("bad image")

    with pytest.raises(ValueError, match="bad image"):
        get(file, fail)
    assert list(own_cache.iterdir()) == []


def test_where_nothing_can_be_written_it_stays_in_memory(file, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRAMP_CACHE", str(file / "below"))  # below a file nothing can be made
    fill = Counter()
    result = get(file, fill)
    assert (result.pixels == 1).all() and not isinstance(result.pixels, np.memmap)
    assert result.facts["notes"] == [f"a/b:c: decoded images could not be kept in {file}/below; they are in memory"]
    monkeypatch.setattr(_cache, "IN_MEMORY", 10)
    with pytest.raises(OSError, match=r"the decoded images need 0.0 GB in .* or use streaming"):
        get(file, fill)


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.delenv("OFFRAMP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache.cache_root(None) == tmp_path / ".cache/offramp"
    assert _cache.cache_root("x").name == "x"


def test_what_a_killed_process_left_behind_is_removed(file, own_cache):
    script = (
        "import os, signal, sys; from offramp.data._cache import cached; from pathlib import Path\n"
        "def fill(allocate): allocate(3, 1, 2, 2); os.kill(os.getpid(), signal.SIGKILL)\n"
        "cached('x', [('f', Path(sys.argv[1]))], {}, fill, None)"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert [entry.name.startswith(".filling-") for entry in own_cache.iterdir()] == [True]

    def fill(allocate):  # what is being filled at this moment stays
        get(file, Counter(), size=1)
        assert sum(entry.name.startswith(".filling-") for entry in own_cache.iterdir()) == 1
        return Counter()(allocate)

    get(file, fill)
    assert len(list(own_cache.iterdir())) == 2
    assert not any(entry.name.startswith(".") or (entry / "lock").exists() for entry in own_cache.iterdir())


def test_folders_without_a_lock_are_removed_after_a_day(file, own_cache):
    for name, age in ((".filling-old", 90_000), (".filling-new", 10)):
        (own_cache / name).mkdir()
        os.utime(own_cache / name, (time.time() - age,) * 2)
    get(file, Counter())
    assert (own_cache / ".filling-new").exists() and not (own_cache / ".filling-old").exists()


def test_without_a_home_folder(file, monkeypatch):
    monkeypatch.delenv("OFFRAMP_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    with pytest.raises(ValueError, match=r"there is no home folder to keep decoded images in: set \$OFFRAMP_CACHE"):
        get(file, Counter())
