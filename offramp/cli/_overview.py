"""What `offramp --help` prints: the verbs with their first lines, read without importing them or what reads words."""

import ast
import shutil
import textwrap
from pathlib import Path

ABOUT = "Vision networks with several exits that teach each other, and leave early for real."
ASKED: tuple[list[str], ...] = ([], ["--help"], ["-h"])
LISTS = "lists"
"""The file that holds several verbs."""


def overview() -> str:
    """Usage, what the program is, and every verb."""
    width = min(shutil.get_terminal_size().columns, 100)
    rows = [*sorted(verbs().items()), ("--help, -h", "Display this message and exit."), ("--version", "The version.")]
    lines = ["Usage: offramp COMMAND [OPTIONS]", "", *textwrap.wrap(ABOUT, width), "", "Commands:"]
    for name, text in rows:
        lines += textwrap.wrap(text, width, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
    return "\n".join([*lines, "", "offramp COMMAND --help explains one of them."])


def verbs() -> dict[str, str]:
    """{verb: the first paragraph of its docstring}: a verb is a function named as its file, or any of `lists`."""
    found: dict[str, str] = {}
    for file in Path(__file__).parent.glob("[a-z]*.py"):
        for part in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(part, ast.FunctionDef) and (part.name == file.stem or file.stem == LISTS):
                text = ast.get_docstring(part) or ""
                if not part.name.startswith("_"):
                    found[part.name] = " ".join(text.split("\n\n")[0].split())
    return found
