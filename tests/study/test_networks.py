"""The table of networks: complete, and as written as the program counts today."""

from pathlib import Path

import pytest

from offramp import branches, models
from offramp.models import msdnet
from offramp.study import external_models, networks
from offramp.study.networks import NetworkRow, line

WRITTEN = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")


def test_it_lists_everything() -> None:
    rows = list(networks.rows())
    assert {row.net for row in rows} == set(models.available())
    assert {row.branch for row in rows} - {None} == set(branches.available())
    assert {row.options["setting"] for row in rows if row.net == "msdnet"} == set(msdnet.SETTINGS)
    assert WRITTEN.startswith(networks.HEADER)
    external = list(external_models.section())
    assert len(WRITTEN.splitlines()) == len(networks.HEADER.splitlines()) + len(rows) + len(external)
    assert WRITTEN.endswith("\n".join(external) + "\n")


SAMPLE = [row for row in networks.rows() if (row.net, row.branch) in {("wrn16-4", "beed"), ("vgg19", "eed")}]


@pytest.mark.parametrize("row", SAMPLE, ids=lambda row: row.net)
def test_lines_are_as_written(row: NetworkRow) -> None:
    assert line(row) in WRITTEN.splitlines()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_all_lines_are_as_written(traceable_msdnet: None, capsys: pytest.CaptureFixture[str]) -> None:
    networks.main()
    assert capsys.readouterr().out == WRITTEN


def test_differences_are_in_printed_digits() -> None:
    figure = networks.PrintedNumber("a paper", "things", "1.5 / 20 / 0.25", lambda values: [1.54, 21.2, 0.254])
    cells = line(NetworkRow("resnet18", None, {"width": 1}, figure=figure)).split(" | ")
    assert cells[-3:] == ["a paper, things: 1.5 / 20 / 0.25", "1.5 / 21 / 0.25", "0 / +1 / 0 |"]
    assert line(NetworkRow("resnet18", None, {"width": 1})).endswith(" |  |  |  |")


def test_options_are_written_as_they_are_typed() -> None:
    built = line(NetworkRow("resnet18", "eed", {"width": 1, "stem_relu": False}, {"widths": (2, 3, 4)}, classes=7))
    assert "| `--net.width 1` `--net.stem_relu false` `--branch.widths 2,3,4` 7 classes |" in built
