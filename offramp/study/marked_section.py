"""Text that a program writes between two marker lines of a document that people write."""

from pathlib import Path

from offramp.train.run_dir import put


def split_at_markers(path: Path, markers: tuple[str, str]) -> tuple[str, str]:
    """The text before and after the two markers of a document; both are empty if the document does not exist.

    Raises:
        ValueError: if the document does not contain each marker exactly once, in this order.
    """
    if not path.exists():
        return "", ""
    begin_marker, end_marker = markers
    before, begin, rest = path.read_text(encoding="utf-8").partition(begin_marker)
    _, end, after = rest.partition(end_marker)
    if not (begin and end) or begin_marker in rest or end_marker in before + after:
        raise ValueError(
            f"{path} was not changed: the table is written between a line `{begin_marker}` and a line `{end_marker}`, "
            "once each"
        )
    return before, after


def write_section(path: Path, text: str, markers: tuple[str, str]) -> None:
    """Write the text between the two markers of a document, or into a new document; errors as in `split_at_markers`."""
    before, after = split_at_markers(path, markers)
    content = f"{before}{markers[0]}\n{text}{markers[1]}" + (after or "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, content)
