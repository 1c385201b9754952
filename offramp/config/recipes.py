"""The recipes that ship with the package: published and measured settings, one YAML file each."""

from pathlib import Path

from offramp.lookup import unknown

FOLDER = Path(__file__).parents[1] / "recipes"


def available() -> dict[str, str]:
    """{name: the first line of its header, what it trains}, sorted by name."""
    return {path.stem: _title(path) for path in sorted(FOLDER.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ParameterError: naming the nearest recipe.
    """
    path = FOLDER / f"{name}.yaml"
    if name not in available():
        raise unknown("recipe", name, list(available()))
    return path


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()
