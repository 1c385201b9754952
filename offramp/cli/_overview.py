"""What `offramp --help` prints: the verbs with their first lines, read without importing them or the parser."""

import ast
import shutil
import textwrap
from pathlib import Path

ABOUT = "Train vision networks with early exits, calibrate when samples exit, and deploy them."
ASKED: tuple[list[str], ...] = ([], ["--help"], ["-h"])
GROUPS = {
    "Train": {
        "train": "train",
        "compare": "compare",
        "sweep": "sweep",
        "reproduce": "reproduce",
        "analyse": "analyse",
        "report": "report",
    },
    "Exit early": {"calibrate": "calibrate", "evaluate": "evaluate", "curves": "curves", "bench": "bench"},
    "Ship": {"export": "export", "predict": "predict", "serve": "serve", "deploy": "deploy", "trust": "trust"},
    "Look up": dict.fromkeys(("nets", "branches", "methods", "data", "recipes"), "lists") | {"info": "info"},
}
"""{title: {verb: the file in this folder that holds the function of that name}}."""
MODULES = {verb: module for group in GROUPS.values() for verb, module in group.items()}


def overview() -> str:
    """Usage, what the program is, and every verb."""
    width = min(shutil.get_terminal_size().columns, 100)
    lines, texts = ["Usage: offramp COMMAND [OPTIONS]", "", *textwrap.wrap(ABOUT, width)], verbs()
    rows = {title: {verb: texts[verb] for verb in group} for title, group in GROUPS.items()}
    rows["Options"] = {"--help, -h": "Display this message and exit.", "--version": "Display the version and exit."}
    for title, group in rows.items():
        lines += ["", f"{title}:"]
        for name, text in group.items():
            lines += textwrap.wrap(text, width, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
    return "\n".join([*lines, "", "Options of a command: offramp COMMAND --help"])


def verbs() -> dict[str, str]:
    """{verb: the first paragraph of its docstring}."""
    texts: dict[str, str] = {}
    for module in dict.fromkeys(MODULES.values()):
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        for part in tree.body:
            if isinstance(part, ast.FunctionDef) and MODULES.get(part.name) == module:
                texts[part.name] = " ".join((ast.get_docstring(part) or "").split("\n\n")[0].split())
    return texts
