"""The public names: all of them are there, and importing the package costs nothing until one is used."""

import importlib
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
    result = getattr(offramp, name)
    assert result is not None and name in dir(offramp)
    if name != "__version__":
        assert result.__doc__ and result.__module__.startswith("offramp.") and result.__name__ == name


def test_train_is_the_function_after_its_package_is_imported() -> None:
    importlib.import_module("offramp.train.loop")
    assert offramp.train is importlib.import_module("offramp.runs.train").train
    assert sys.modules["offramp.train"].__path__  # and the package is still a package


def test_info_is_the_result_that_is_printed() -> None:
    info = offramp.info(offramp.Config(net="resnet18", branch="linear", width=4), classes=10)
    assert isinstance(info, offramp.NetworkInfo) and len(info.macs) == len(info.summary.exits) == 4
    with pytest.raises(ValueError, match=r"^image_size must be at least 1, got 0"):
        offramp.info(offramp.Config(image_size=0))


def test_from_offramp_import_star() -> None:
    values: dict[str, object] = {}
    exec("from offramp import *", values)
    assert set(offramp.__all__) <= set(values)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'offramp' has no attribute 'Exit'"):
        getattr(offramp, "Exit")  # noqa: B009
