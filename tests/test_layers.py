"""A package imports only packages on lower floors, so that none depends on who uses it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import offramp

PACKAGE = Path(offramp.__file__).parent
FLOORS = """
    text renamed
    allocator cores lookup results optional digests finite progress docstrings
    schema images python_names
    files outputs device_copies cuda_graphs running_statistics hyperparameters image_files plugins
    trust protocols discovery argument_types
    meta_device
    net layers losses data early_exit
    multi_net
    models branches step measure split
    methods
    train bundle
    testing
    study config
    engine
    runs
    papers
    serve
    cli
    __main__ __init__
"""
LEVEL = {name: level for level, line in enumerate(FLOORS.split("\n")) for name in line.split()}


def modules(file: Path) -> Iterator[str]:
    """The dotted names that a file imports anywhere: at its top, in a function or for its annotations alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively: write offramp.PACKAGE"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.startswith("offramp."))


def imported(file: Path) -> Iterator[str]:
    """The packages that a file imports."""
    yield from (name.split(".")[1] for name in modules(file) if name != "offramp.__version__")


def test_a_package_imports_only_packages_on_lower_floors() -> None:
    offenders = []
    for file in sorted(PACKAGE.rglob("*.py")):
        package = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = {package, *(other for other in LEVEL if LEVEL[other] < LEVEL.get(package, -1))}
        offenders += [f"{file.relative_to(PACKAGE)} imports {name}" for name in sorted(set(imported(file)) - allowed)]
    assert not offenders, "\n".join(offenders)


def test_a_verb_imports_no_other_verb() -> None:
    verbs = [file for file in sorted((PACKAGE / "cli").glob("*.py")) if not file.name.startswith("_")]
    others = {f"offramp.cli.{file.stem}" for file in verbs}
    assert len(others) > 15
    offenders = [
        f"cli/{file.name} imports {name}"
        for file in verbs
        for name in modules(file)
        if ".".join(name.split(".")[:3]) in others
    ]
    assert not offenders, "\n".join(offenders)


def test_every_package_has_its_floor() -> None:
    packages = {path.stem for path in PACKAGE.glob("*.py")}
    packages |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - {"__init__"} <= set(LEVEL)
