"""docs/extending.md shows the files of examples/plugin as they are; CONTRIBUTING.md stays short and links to it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
BLOCKS = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL)
FILES = (
    "pyproject.toml",
    "tests/test_plugin.py",
    *(f"offramp_example/{name}.py" for name in ("neighbour", "pointwise")),
)


@pytest.mark.parametrize("name", [*FILES, "offramp_example/stack.py", "offramp_example/stripes.py"])
def test_the_document_shows_the_files_of_the_plugin(name: str) -> None:
    assert (PLUGIN / name).read_text() in BLOCKS


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for name in ("docs/extending.md", "CONTRIBUTING.md", "examples/plugin/README.md", "examples/README.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
            assert ((ROOT / name).parent / link).exists(), f"{name}: {link}"
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/extending.md").read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", (ROOT / "docs/extending.md").read_text())) <= anchors


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40
