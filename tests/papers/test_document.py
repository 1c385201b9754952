"""docs/reproduction.md says what the ledger of the reduced protocol holds."""

from pathlib import Path

import pytest

from offramp.papers.document import MARKERS, document, write_document
from offramp.papers.reproduce import Reproduction, reproduce
from offramp.study.marked_section import split_at_markers

ROOT = Path(__file__).parents[2]
LEDGER = "results/quick-cifar100-resnet18.jsonl"


@pytest.fixture(scope="module")
def result() -> Reproduction:
    """Everything that the ledger has; its path as the document's command gives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return reproduce("all", quick=True, show=True, seeds=(0, 1, 2), ledger=Path(LEDGER))


def test_the_document_is_what_the_program_writes_from_the_ledger(result: Reproduction) -> None:
    text = (ROOT / "docs/reproduction.md").read_text(encoding="utf-8")
    assert f"--ledger {LEDGER}" in text
    assert text.partition(MARKERS[0])[2].partition(MARKERS[1])[0].strip() == document(result).strip(), (
        "run the command in docs/reproduction.md"
    )


def test_every_table_figure_and_claim_is_in_it(result: Reproduction) -> None:
    text = document(result)
    assert len(result.tables) == 18 and len(result.figures) >= 11 and len(result.claims) >= 30
    assert all(f"### {table.name}\n" in text for table in result.tables)
    flat = " ".join(text.split())
    assert all(claim.text in flat for claim in result.claims)
    assert text.count("needs ImageNet: full scale only") > 40


def test_only_the_text_between_the_markers_is_written(result: Reproduction, tmp_path: Path) -> None:
    path = tmp_path / "reproduction.md"
    path.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write_document(result, path)
    before, after = split_at_markers(path, MARKERS)
    assert (before, after) == ("before\n", "\nafter\n")
    assert "\nold\n" not in path.read_text()
    path.write_text("no markers")
    with pytest.raises(ValueError, match="was not changed"):
        write_document(result, path)


def test_lines_end_at_120_characters(result: Reproduction) -> None:
    assert all(len(line) <= 120 or line.startswith("|") for line in document(result).splitlines())
