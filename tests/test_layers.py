"""Every room of the package imports only rooms above its own, so that none has to know who uses it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import offramp

PACKAGE = Path(offramp.__file__).parent
ROOMS = """
    lookup images optional digests finite
    outputs hyperparameters
    meta_device
    net blocks losses data early_exit
    multi_net
    models branches methods measure split
    train bundle
    study config
    engine
    runs
    serve
    cli
"""
LEVEL = {room: level for level, line in enumerate(ROOMS.split("\n")) for room in line.split()}


def imported(file: Path) -> Iterator[str]:
    """The rooms that a file imports anywhere, at its top, in a function or for its annotations alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively: write offramp.room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("offramp.") and name != "offramp.__version__":
                yield name.split(".")[1]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_its_own(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = {other for other in LEVEL if LEVEL[other] < LEVEL.get(room, -1)}
    assert set(imported(file)) <= {room, *above}, f"{room} imports a room that is not above it"


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__"} <= set(LEVEL)
