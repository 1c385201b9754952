"""Names that people type: discovery without import, and errors that name the nearest spelling."""

import subprocess
import sys
from pathlib import Path

import pytest

from offramp import discovery, lookup


def test_unknown_names_the_nearest_and_the_listing() -> None:
    error = lookup.unknown("method", "muze", ["joint", "muse"])
    assert str(error) == "unknown method 'muze'; the nearest is 'muse' (see `offramp methods`)"


def test_unknown_lists_all_where_nothing_is_near() -> None:
    assert str(lookup.unknown("form", "zzz", ["cifar", "imagenet"], listing="")) == (
        "unknown form 'zzz'; there are 'cifar', 'imagenet'"
    )
    assert str(lookup.unknown("net", "x", [])) == "unknown net 'x'; there are none (see `offramp nets`)"


def test_nearest_ignores_case_and_keeps_the_spelling() -> None:
    assert lookup.nearest("resnet18", ["ResNet18", "vgg"]) == "the nearest is 'ResNet18'"


def test_discover_reads_docstrings_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "rooms_for_test"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "b.py").write_text('"""First line.\n\nSecond."""\nraise RuntimeError("imported")\n')
    (package / "a.py").write_text("x = 1\n")
    (package / "_hidden.py").write_text('"""Not an offer."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert discovery.discover("rooms_for_test") == {"a": "", "b": "First line."}
    with pytest.raises(ValueError, match=r"^unknown room 'bb'; the nearest is 'b' \(see `offramp rooms`\)$"):
        discovery.load("room", "rooms_for_test", "bb")
    assert discovery.load("room", "rooms_for_test", "a").x == 1


def test_listing_nets_and_branches_does_not_import_torch() -> None:
    code = (
        "import sys, offramp.models as m, offramp.branches as b; assert m.available() and b.available(); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
