"""The public names: all of them are there, and importing the package costs nothing until one is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import offramp

HEAVY = ("torch", "pyarrow", "numpy", "PIL", "rich", "lightning_fabric", "cyclopts", "yaml")


def modules_after(program: str) -> set[str]:
    """What a fresh interpreter has imported after these lines."""
    program += "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    root = Path(offramp.__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=root)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import offramp; dir(offramp); offramp.__version__").isdisjoint(HEAVY)


def test_a_name_imports_what_it_needs() -> None:
    assert "torch" in modules_after("import offramp; offramp.Head(3, 2)")


@pytest.mark.parametrize("name", offramp.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(offramp, name)
    assert found is not None and name in dir(offramp)
    if name != "__version__":
        assert found.__doc__ and found.__module__.startswith("offramp.") and found.__name__ == name


def test_from_offramp_import_star() -> None:
    given: dict[str, object] = {}
    exec("from offramp import *", given)
    assert set(offramp.__all__) <= set(given)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'offramp' has no attribute 'Exit'"):
        getattr(offramp, "Exit")  # noqa: B009
