"""offramp reproduce from end to end on digits: trains what is missing, once, and prints printed beside measured."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offramp as package
from offramp.engine import local
from offramp.lookup import ParameterError
from offramp.papers import render
from offramp.papers.analysed import _blocks, file_of
from offramp.papers.catalog import factors, protocol_from, training
from offramp.papers.document import MARKERS
from offramp.papers.lines import measured
from offramp.papers.missing import FAILURES, _keep_failures, failures, ready, train_missing
from offramp.papers.reproduce import overview, reproduce
from offramp.runs.train_all import SilentCompare
from offramp.train import log

ROOT = Path(__file__).parents[2]
TINY = """
data: digits
holdout: 0.3
epochs: 1
batch-size: 256
lr: 0.05
schedule: constant
precision: "32"
width: 4
"""
ROWS = ["resnet18 l_s"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protocol of one epoch on digits."""
    path = tmp_path_factory.mktemp("protocol") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def trained(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, forked_origin: None
) -> tuple[Path, package.Reproduction]:
    """Two rows of MUSE Table 4 reproduced with one seed; nobody may change the folder."""
    out = tmp_path_factory.mktemp("reproduced") / "out"
    return out, reproduce("muse-table-4", protocol=tiny, rows=ROWS, out=out, jobs=2)


def test_missing_runs_are_trained_and_stand_beside_what_was_printed(trained) -> None:
    out, result = trained
    (table,) = result.tables
    assert [row.state for row in table.rows] == ["measured", "measured"]
    assert [cell.published for cell in table.rows[0].cells] == [66.54, 73.11, 77.63, 78.19]
    for row in table.rows:
        for cell in row.cells:
            assert cell.runs == 1 and cell.deviation is None
            assert cell.measured is not None and 0 < cell.measured <= 100
            assert cell.difference == pytest.approx(cell.measured - cell.published)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {(line["config"]["branch"], line["config"]["net.width"]) for line in lines} == {("byot", 4), ("sketch", 4)}
    assert (result.protocol, result.failed, result.left_out) == ("tiny", [], {})
    assert result.hours > 0


def test_runs_are_shared_with_other_tables_and_not_trained_again(trained, tiny: Path) -> None:
    out, _ = trained
    before = sorted(out.iterdir())
    shown = reproduce("muse-sketch-exits", protocol=tiny, out=out)
    assert sorted(out.iterdir()) == before
    (claim,) = shown.claims
    assert (claim.verdict, claim.contrasts[0].seeds) == ("undecided", [0])
    listed = {one.name: one for one in overview(protocol=tiny, out=out)}
    assert (listed["muse-table-4"].measured, listed["muse-table-4"].trainings) == (2, 8)
    assert (listed["beed-table-1"].measured, listed["eed-table-3"].trainings) == (1, 0)


def test_a_plan_trains_nothing_and_measures_what_is_missing(trained, tiny: Path) -> None:
    out, _ = trained
    result = reproduce("muse-table-4", protocol=tiny, rows=ROWS, out=out, seeds=(0, 1), plan=True)
    assert {(tuple(one.present), tuple(one.missing)) for one in result.plan} == {((0,), (1,))}
    for one in result.plan:
        assert one.step_seconds is not None and one.step_seconds > 0
        assert one.hours == pytest.approx(one.step_seconds * 4 / 3600)  # 1,006 images in batches of 256
    assert not list(out.glob("*-seed-1"))
    assert "2 runs, " in render.as_text(result)


def test_a_folder_of_another_protocol_is_refused(trained, tmp_path: Path) -> None:
    out, _ = trained
    other = tmp_path / "tiny.yaml"
    other.write_text(TINY.replace("epochs: 1", "epochs: 2"))
    with pytest.raises(ValueError, match="contains a comparison with another configuration: recipe is"):
        reproduce("muse-table-4", protocol=other, rows=ROWS, out=out)


def test_a_diverged_training_is_a_row_that_says_so(tmp_path: Path, forked_origin: None) -> None:
    protocol = tmp_path / "wild.yaml"
    protocol.write_text(TINY.replace("lr: 0.05", "lr: 1.0e+30"))
    table, rows = "beed-table-1", ["resnet18 ce exit=tofd"]
    result = reproduce(table, protocol=protocol, rows=rows, out=tmp_path / "out")
    assert [one["run"] for one in result.failed] == ["c100.resnet18.tofd.joint seed 0"]
    (row,) = result.tables[0].rows
    assert row.state.startswith("seed 0 diverged: the loss term 'ce")
    assert row.cells[0].measured is None
    assert "seed 0 diverged" in render.as_markdown(result)
    again = reproduce(table, protocol=protocol, rows=rows, out=tmp_path / "out", show=True)
    assert again.tables == result.tables


def test_figures_are_tables_of_the_analyses_of_the_runs_that_are_there(trained, tiny: Path, tmp_path: Path) -> None:
    out = shutil.copytree(trained[0], tmp_path / "out")
    result = reproduce("muse-fig-5", protocol=tiny, out=out, show=True)
    (figure,) = result.figures
    assert figure.state == "measured in part; not run: the others"
    assert figure.measured == ["c100.resnet18.sketch.joint"]
    assert [row.exit for row in figure.rows] == ["exit1", "exit2", "exit3", "final"]
    first, *_, last = figure.rows
    assert (first.seeds, first.deviations) == ([0], [None] * 3)
    assert first.means[0] is not None and all(share is None or 0 <= share <= 100 for share in first.means)
    assert last.means[1:] == [None, None]  # nothing is deeper
    (line,) = map(json.loads, file_of(out / "results.jsonl").read_text().splitlines())
    assert [(one["epoch"], len(one["val_accuracy"]), list(one["train"])) for one in line["curve"]] == [
        (0, 4, ["loss", "ce"])
    ]
    shutil.rmtree(out / "c100.resnet18.sketch.joint-seed-0")
    assert reproduce("muse-fig-5", protocol=tiny, out=out, show=True).figures == [
        figure
    ]  # from the line beside the ledger
    assert reproduce("muse-fig-4", protocol=tiny, out=out, show=True).figures[0].state == "not run"
    assert "| c100.resnet18.sketch.joint | exit1 | 1 |" in render.as_markdown(result)
    assert "tiny,muse-fig-5,,,,,c100.resnet18.sketch.joint,accuracy %,exit1,," in render.as_csv(result)
    assert render.as_latex(result).count("\\begin{table}") == 1


def test_dissimilarity_is_measured_on_the_features_of_a_run(trained) -> None:
    before, after = _blocks(trained[0] / "c100.resnet18.byot.joint-seed-0", {"data_dir": None})
    assert (before["where"], after["where"]) == ("before the classifier", "after it")
    assert 0 <= before["within"] < before["between"] <= 2


def test_failures_are_told_in_short(tmp_path: Path) -> None:
    (tmp_path / FAILURES).write_text('{"a.b seed 3": "the disk is full; make room"}')
    assert failures(tmp_path) == {"a.b": "seed 3 failed: the disk is full"}
    _keep_failures(tmp_path, {"c.d seed 0"}, [{"run": "c.d seed 0", "reason": "no"}])
    assert set(failures(tmp_path)) == {"a.b", "c.d"}
    _keep_failures(tmp_path, {"a.b seed 3"}, [])  # it has succeeded
    assert set(failures(tmp_path)) == {"c.d"}


def test_a_ledger_of_another_version_is_shown_but_not_added_to(line, write, tmp_path: Path) -> None:
    ledger = write([line("c100.resnet18.sketch.muse", (0.4,) * 4, version="9.8.7")])
    shown = reproduce("muse-table-4", quick=True, ledger=ledger, show=True, out=tmp_path / "out")
    assert shown.version == "9.8"
    with pytest.raises(ParameterError, match=r"has runs of version 9\.8, which are not mixed"):
        reproduce("muse-table-4", quick=True, ledger=ledger, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_from_another_run_wait_for_it(tmp_path: Path) -> None:
    fixed, free = training("c150.msdnet-cifar-5.own.hdkd-fixed-1"), training("c150.msdnet-cifar-5.own.hdkd")
    able, waiting = ready([(free, 0), (fixed, 0)], tmp_path)
    assert able == [(free, 0)]
    assert waiting[0]["run"] == "c150.msdnet-cifar-5.own.hdkd-fixed-1 seed 0"
    assert "final loss weights of c150.msdnet-cifar-5.own.hdkd seed 0" in waiting[0]["reason"]
    (tmp_path / "c150.msdnet-cifar-5.own.hdkd-seed-0").mkdir()
    (tmp_path / "c150.msdnet-cifar-5.own.hdkd-seed-0" / "result.json").write_text("{}")
    assert ready([(fixed, 0)], tmp_path) == ([(fixed, 0)], [])


def test_a_run_starts_from_the_final_weights_of_the_other_and_keeps_them(
    tmp_path: Path, forked_origin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one layer in each block of the network: its depth is not what is tested."""
    networks, name = factors()["networks"], "msdnet-cifar-5"
    monkeypatch.setitem(networks, name, {**networks[name], "net.mode": "even"})
    few = TINY.replace("holdout: 0.3", "holdout: 0.1")
    (tmp_path / "tiny.yaml").write_text(f"{few}per-class: 20\ndata.per_class_includes_holdout: true\n")
    protocol = protocol_from(tmp_path / "tiny.yaml")
    fixed, ledger = training("c150.msdnet-cifar-5.own.hdkd-fixed-1"), tmp_path / "l.jsonl"
    known = measured(ledger, [fixed], protocol)
    failed = train_missing(
        [fixed], [0], protocol, tmp_path / "out", ledger, known, None, 1, SilentCompare(), local, "cpu"
    )
    assert failed == []
    learned, kept = (
        [record["weights"] for record in log.read(tmp_path / "out" / f"{name}-seed-0" / "metrics.jsonl", "step")]
        for name in ("c150.msdnet-cifar-5.own.hdkd", fixed.name)
    )
    assert learned[-1][:5] != [1.0] * 5, "the other run's weights have moved"
    assert kept == [learned[-1]] * len(kept)


def test_every_format(line, write, tmp_path: Path) -> None:
    names = ("c100.resnet18.sketch.joint", "c100.resnet18.byot.joint")
    lines = [
        line(name, (0.5 + place / 100, 0.6, 0.7, 0.8), seed) for place, name in enumerate(names) for seed in (0, 1)
    ]
    result = reproduce("muse-table-4", quick=True, ledger=write(lines), show=True, out=tmp_path)
    text = render.as_text(result)
    assert str(result) == text
    assert "Protocol quick: REDUCED" in text and "ResNet50 SML SBC" in text and "published; not run" in text
    assert "DOES NOT HOLD" in text
    markdown = render.as_markdown(result)
    assert "| ResNet18 L_S SBC | published | 75.96 | 77.51 | 78.36 | 78.74 |" in markdown
    assert "|  | measured (2 seeds) | 50.00 ± 0.00 | 60.00 ± 0.00 | 70.00 ± 0.00 | 80.00 ± 0.00 |" in markdown
    assert "|  | difference | -25.96 | -17.51 | -8.36 | +1.26 |" in markdown
    latex = render.as_latex(result)
    assert latex.count("\\begin{table}") == 2 and "L\\_S" in latex
    head, *rows = render.as_csv(result).splitlines()
    assert head.startswith("protocol,table,data,network")
    assert sum(row.startswith("quick,muse-table-4,") for row in rows) == 32
    assert any(row.startswith("quick,muse-sketch-exits,") and row.endswith("does not hold") for row in rows)
    places = [(row["runs"], row["hardware"]) for row in csv.DictReader(io.StringIO(render.as_csv(result)))]
    assert set(places) == {("2", "a CPU, 1 thread"), ("0", "")}
    assert result.trained_on == {name: ["a CPU, 1 thread"] for name in names}


def test_the_command_line(line, write, tmp_path: Path, capsys, monkeypatch) -> None:
    from offramp.cli import main

    monkeypatch.chdir(tmp_path)
    ledger = write([line("c100.resnet18.sketch.muse", (0.4,) * 4)])

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["reproduce", *map(str, words)])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    status, out, _ = run("--quick", "--ledger", ledger)
    assert status == 0 and "muse-table-4" in out and "1/8" in out
    status, out, _ = run("muse-table-4", "--quick", "--show", "--ledger", ledger, "--format", "json")
    assert status == 0 and json.loads(out)["tables"][0]["rows"][3]["seeds"] == [0]
    document_path = tmp_path / "reproduction.md"
    words = ("muse-table-4", "--quick", "--show", "--ledger", ledger, "--format", "csv", "--document", document_path)
    assert run(*words)[0] == 0
    assert document_path.read_text().startswith(MARKERS[0])
    document_path.write_text("without markers")
    status, _, err = run(*words)
    assert status and "was not changed" in err
    status, _, err = run("muse-tabel-4")
    assert (status, err.count("\n")) == (2, 1) and "the nearest is 'muse-table-4'" in err
    status, _, err = run("--plan")
    assert status == 2 and "--plan needs the name of a table" in err
    status, _, err = run("muse-table-4", "--quick", "--protocol", "digits")
    assert status == 2 and "--quick and --protocol both say how to train" in err
    (tmp_path / "two.yaml").write_text(f"{TINY}devices: 2\n")
    status, _, err = run("muse-table-4", "--protocol", tmp_path / "two.yaml", "--out", tmp_path / "two")
    assert status == 2 and "--devices 2 is for train: each of several runs trains in one process" in err
    assert not (tmp_path / "two").exists()
    status, _, err = run("muse-table-4", "--seeds", "0,0")
    assert status == 2 and "--seeds must be different numbers" in err


def test_reproduce_is_public() -> None:
    reproduction: Callable[..., Any] = package.reproduce
    assert reproduction is reproduce
