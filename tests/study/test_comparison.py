"""A ledger becomes a comparison: what may be compared is, pairs share a seed, documents change between markers only."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from offramp.config import Config, flat, resolve
from offramp.study.comparison import compare
from offramp.study.comparison_files import MARKERS, csv_of, draw, latex_of, markdown
from offramp.study.comparison_text import comparison_text
from offramp.study.ledger import append, common, holds, label, read
from offramp.study.marked_section import write_section

JOINT = {0: (0.50, 0.60), 1: (0.52, 0.61), 2: (0.51, 0.65)}
BYOT = {0: (0.51, 0.60), 1: (0.55, 0.61), 2: (0.53, 0.65)}


def line(method: str, seed: int, accuracy: tuple[float, ...], ensemble: float = 0.7, **others: Any) -> dict[str, Any]:
    """A line of a ledger, with the keys that a comparison looks at."""
    config = {"net": "resnet18", "net.width": 16, "branch": "sketch", "data": "cifar100", "epochs": 40}
    config |= {"method": method, "seed": seed, "data-dir": f"/data/{seed}", "checkpoint-every": seed + 1}
    training = {"seconds": 10.0, "provenance": {"date": f"2026-01-0{seed + 1}"}}
    built = {"split": "test", "weights": "last", "accuracy": list(accuracy), "ensemble": ensemble, "training": training}
    built["provenance"] = {"device": "cpu"}
    built |= {key: value for key, value in others.items() if key in built}
    return built | {"config": config | {key: value for key, value in others.items() if key not in built}}


def ledger(path: Path, *lines: dict[str, Any]) -> Path:
    for one in lines:
        append(path, one)
    return path


@pytest.fixture
def three_seeds(tmp_path: Path) -> Path:
    runs = [line("byot", seed, result) for seed, result in BYOT.items()]
    return ledger(tmp_path / "new" / "x.jsonl", *runs, *(line("joint", seed, result) for seed, result in JOINT.items()))


def test_means_deviations_and_paired_differences(three_seeds: Path) -> None:
    (result,) = compare(read(three_seeds))
    assert result.columns == ["exit 1", "final", "ensemble"]
    joint, byot = result.methods
    assert (joint.method, joint.seeds, joint.pairs, joint.difference) == ("joint", [0, 1, 2], [], [])
    assert joint.mean[0] == pytest.approx(0.51) and joint.deviation[0] == pytest.approx(0.01)
    assert byot.pairs == [0, 1, 2] and byot.difference == [pytest.approx(0.02), 0, 0]  # .01, .03, .02; nothing; nothing
    assert byot.interval95[0] == pytest.approx([0.02 - 0.0248414, 0.02 + 0.0248414], abs=1e-6)
    assert byot.interval95[1:] == [[0, 0], [0, 0]]


def test_markdown_says_both_tables(three_seeds: Path) -> None:
    text = markdown(compare(read(three_seeds))[0])
    assert text.startswith(
        "resnet18 width 16, sketch exits, cifar100, 40 epochs; last epoch on test, on cpu:\naccuracy in percent"
    )
    assert "| `joint` | 3 | 51.00 ± 1.00 | 62.00 ± 2.65 | 70.00 ± 0.00 |" in text
    assert "| `byot` | 3 | +2.00 [-0.48, +4.48] | +0.00 [+0.00, +0.00] | +0.00 [+0.00, +0.00] |" in text
    assert "95 % confidence interval" in text


def test_the_devices_named_are_those_of_the_evaluation(tmp_path: Path) -> None:
    provenance = {"device": "cuda"}
    runs = [line("joint", seed, (0.5, 0.6), device="cpu", provenance=provenance) for seed in (0, 1)]
    (result,) = compare(read(ledger(tmp_path / "x", *runs)))
    assert result.devices == ["cuda"] and "last epoch on test, on cuda:" in markdown(result)
    (result,) = compare(read(ledger(tmp_path / "x", line("joint", 2, (0.5, 0.6), device="cpu"))))
    assert result.devices == ["cpu", "cuda"] and "on test, on cpu and cuda" in comparison_text(result)


def test_csv_latex_and_figures(three_seeds: Path, tmp_path: Path) -> None:
    comparisons = compare(read(three_seeds))
    rows = list(csv.DictReader(io.StringIO(csv_of(comparisons))))
    assert [row["column"] for row in rows] == 2 * ["exit 1", "final", "ensemble"]
    assert float(rows[3]["difference"]) == pytest.approx(0.02) and rows[0]["difference"] == ""
    assert float(rows[0]["mean"]) == pytest.approx(0.51) and float(rows[0]["deviation"]) == pytest.approx(0.01)
    assert r"joint & 3 & 51.00 $\pm$ 1.00 & 62.00 $\pm$ 2.65 & 70.00 $\pm$ 0.00 \\" in latex_of(comparisons)
    draw(comparisons[0], tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text()
    assert svg.count("<circle") == 3 and svg.count('stroke-width="1.2"') == 4, "a mark and an error bar per exit"


def test_top_5(tmp_path: Path) -> None:
    runs = [line("joint", 0, (0.5, 0.6)) | {"top5": [0.8, 0.9]}, line("eed", 0, (0.6, 0.6)) | {"top5": [0.9, 0.9]}]
    (comparison,) = compare(read(ledger(tmp_path / "x", *runs)), metric="top5")
    assert comparison.columns == ["exit 1", "final"] and comparison.methods[1].mean == [0.9, 0.9]
    assert "| `eed` | one seed | +10.00 | +0.00 |" in markdown(comparison) and "top-5 accuracy in percent" in markdown(
        comparison
    )


def test_one_seed_is_said_instead_of_an_interval(tmp_path: Path) -> None:
    (result,) = compare(read(ledger(tmp_path / "x", line("joint", 0, (0.5, 0.6)), line("eed", 0, (0.6, 0.6)))))
    assert "| `eed` | one seed | +10.00 | +0.00 | +0.00 |" in markdown(result)
    assert result.methods[1].interval95 == result.methods[1].deviation == [None, None, None]


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    runs = [line("joint", 1, (0.5,)), line("eed", 0, (0.9,)), line("eed", 1, (0.6,)), line("dbt", 7, (0.6,))]
    (result,) = compare(read(ledger(tmp_path / "x", *runs)))
    _, eed, dbt = result.methods
    assert eed.seeds == [0, 1] and eed.pairs == [1] and eed.difference[0] == pytest.approx(0.1)
    assert dbt.pairs == [] and dbt.difference == []


def test_without_the_baseline_there_are_no_differences(tmp_path: Path) -> None:
    path = ledger(tmp_path / "x", line("byot", 0, (0.5,)), line("eed", 0, (0.6,)))
    assert "Difference" not in markdown(compare(read(path))[0])
    assert "Difference to `byot`" in markdown(compare(read(path), "byot")[0])


def test_networks_with_fewer_exits_stand_at_the_right(tmp_path: Path) -> None:
    runs = [line("joint", 0, (0.5, 0.6, 0.7)), line("vanilla", 0, (0.8,), 0.8)]
    (result,) = compare(read(ledger(tmp_path / "x", *runs)))
    assert "| `vanilla` | one seed | – | – | 80.00 | 80.00 |" in markdown(result)
    assert "| `vanilla` | one seed | – | – | +10.00 | +10.00 |" in markdown(result)


@pytest.mark.parametrize("other", [{"epochs": 41}, {"weights": "best"}, {"split": "val"}, {"net.width": 8}])
def test_what_was_not_trained_alike_is_never_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    result = compare(read(ledger(tmp_path / "x", line("joint", 0, (0.5,)), line("eed", 0, (0.6,), **other))))
    assert [[row.method for row in one.methods] for one in result] == [["joint"], ["eed"]]


def test_of_the_same_run_twice_the_last_line_counts(tmp_path: Path) -> None:
    (result,) = read(ledger(tmp_path / "x", line("joint", 0, (0.5,)), line("joint", 0, (0.6,))))
    assert result.accuracy == (0.6,)


def test_a_label_names_the_parameters_that_are_not_defaults() -> None:
    for values, named in (({}, "muse"), ({"alpha": 0.5}, "muse"), ({"alpha": 0.1}, "muse(alpha=0.1)")):
        config = flat(resolve(Config(method="muse", method_options=values)))
        assert label(config) == named
        assert label(json.loads(json.dumps(config))) == named
    assert label({"method": "gone", "method.k": [0, -1]}) == "gone(k=0,-1)"


def test_common_leaves_out_method_seed_and_what_computes_nothing() -> None:
    one = flat(resolve(Config(method="muse")))
    other = flat(resolve(Config(method="joint", data_dir=Path("elsewhere")))) | {"seed": 3, "checkpoint-every": 1}
    assert common(one) == common(other)
    assert "method.alpha" not in common(one) and common(one)["lr"] == 0.1


def test_a_run_that_was_trained_anew_is_another_run(tmp_path: Path) -> None:
    one = line("joint", 0, (0.5,))
    path = tmp_path / "x"
    assert not holds(path, one["config"], one["training"])
    append(path, one)
    assert holds(path, {**one["config"], "data-dir": "elsewhere"}, one["training"])
    assert not holds(path, {**one["config"], "seed": 1}, one["training"])
    assert not holds(path, one["config"], {"seconds": 11.0, "provenance": {"date": "2026-01-01"}})


def test_a_last_line_that_does_not_end_is_ended_first(tmp_path: Path) -> None:
    path = ledger(tmp_path / "x", line("joint", 0, (0.5,)))
    path.write_text(path.read_text().removesuffix("\n"))
    append(path, line("joint", 1, (0.6,)))
    assert [one.seed for one in read(path)] == [0, 1] and path.read_text().endswith("}\n")


def test_a_ledger_does_not_say_where_this_machine_keeps_its_data(tmp_path: Path) -> None:
    one = line("joint", 0, (0.5,)) | {"command": "offramp evaluate 'a run' --data-dir /data/0 --json"}
    one["training"]["provenance"]["command"] = "offramp train --data-dir /data/0"
    (kept,) = map(json.loads, ledger(tmp_path / "x", one).read_text().splitlines())
    assert kept["command"] == "offramp evaluate 'a run' --data-dir DIR --json"
    assert kept["training"]["provenance"]["command"] == "offramp train --data-dir DIR"
    assert kept["config"] == {**one["config"], "data-dir": None} and kept["accuracy"] == [0.5]
    nowhere = line("joint", 0, (0.5,), **{"data-dir": None})
    assert json.loads(ledger(tmp_path / "y", nowhere).read_text()) == nowhere


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "x.jsonl contains no runs yet"),
        ('{"a": 1\n', "x.jsonl line 1 is not JSON"),
        ("[1]\n", "x.jsonl line 1 is not a JSON object"),
        (
            '{"benchmark": "losses"}\n',
            r"x.jsonl line 1 is not a run \(KeyError: 'config'\): a line is the output of",
        ),
    ],
)
def test_what_is_no_ledger_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "x.jsonl")


def test_a_ledger_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no ledger .*x\.jsonl"):
        read(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"x\.jsonl is not a ledger: it is not text"):
        read(tmp_path / "x.jsonl")


def test_the_block_of_a_document_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    for text in ("new\n", "newer\n"):
        write_section(path, text, MARKERS)
        assert path.read_text() == f"before\n{MARKERS[0]}\n{text}{MARKERS[1]}\nafter\n"
    write_section(tmp_path / "made.md", "text\n", MARKERS)
    assert (tmp_path / "made.md").read_text() == f"{MARKERS[0]}\ntext\n{MARKERS[1]}\n"


@pytest.mark.parametrize(
    "text",
    [
        "mine",
        MARKERS[0],
        f"{MARKERS[1]}{MARKERS[0]}",
        f"{MARKERS[0]}{MARKERS[0]}{MARKERS[1]}",
        f"{MARKERS[0]}{MARKERS[1]}{MARKERS[1]}",
    ],
)
def test_a_document_without_the_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.md was not changed: the table is written between a line"):
        write_section(path, "table", MARKERS)
    assert path.read_text() == text


def with_costs(method: str, seed: int, accuracy: tuple[float, ...], points: list[tuple[float, float, float]]) -> Any:
    """A line with policies: (accuracy on cal, cost, accuracy on test) of each."""
    keys = ("cal_accuracy", "cal_cost", "accuracy")
    frontier = [dict(zip(keys, point, strict=True), costs={"macs": point[1], "ms": point[1] / 10}) for point in points]
    more = {"auroc": [0.9] * len(accuracy), "calibration_error": [0.05] * len(accuracy), "budgeted_area": 0.4}
    images = {"images": {"cal": "a", "test": "b"}, "macs": [10 * (place + 1) for place in range(len(accuracy))]}
    return line(method, seed, accuracy) | {"frontier": frontier} | more | images


EARLY = [(0.5, 10, 0.5), (0.6, 20, 0.58)]
"""Between the two lies every mixture of them."""


def test_the_cost_at_the_accuracy_of_the_plain_network_over_seeds(tmp_path: Path) -> None:
    runs = [with_costs("joint", seed, (0.5, 0.58), EARLY) for seed in (0, 1)]
    runs += [with_costs("vanilla", seed, (0.57,), [(0.55 + seed / 100, 20, 0.57)]) for seed in (0, 1)]
    (result,) = compare(read(ledger(tmp_path / "x", *runs)))
    joint, vanilla = result.costs
    assert result.plain == "plain = vanilla with the same seed" and joint.seeds == [0, 1]
    position, below = joint.at_accuracy
    assert position.macs is not None and position.macs.mean == pytest.approx((15 + 16) / 2)
    assert position.macs.interval95 == pytest.approx([15.5 - 12.706 / 2, 15.5 + 12.706 / 2], abs=1e-2)
    assert below.macs is not None and below.macs.mean == pytest.approx(15.0) and below.drop == 0.005
    assert position.ms is not None and position.ms.mean == pytest.approx(1.55)
    assert position.points is not None and position.points.mean == pytest.approx(0.544 - 0.57)
    assert vanilla.at_accuracy[0].macs is not None and vanilla.at_accuracy[0].macs.mean == 20 and joint.area is not None
    assert joint.auroc == pytest.approx([0.9, 0.9])
    text = markdown(result)
    assert "| `joint` | 2 | 16 ± 6 | 1.550 ± 0.635 | -2.60 ± 5.08 | 15 ± 6 |" in text, text
    assert "| `vanilla` | – | 0.900 / 5.00 |" in text and "plain = vanilla with the same seed" in text
    assert "milliseconds (on cpu) where" in text and "ms on cpu" in comparison_text(result)
    rows = list(csv.DictReader(io.StringIO(csv_of([result]))))
    cost = next(row for row in rows if row["metric"] == "macs" and row["column"] == "0 points below plain")
    assert float(cost["mean"]) == pytest.approx(15.5) and float(cost["mean_low95"]) < 15.5 < float(cost["mean_high95"])
    assert {"auroc", "calibration_error", "area", "ms", "accuracy less plain"} <= {row["metric"] for row in rows}
    assert latex_of([result]).count("\\begin{table}") == 3
    draw(result, tmp_path / "x.svg")
    assert "early exit at the accuracy of plain" in (tmp_path / "x.svg").read_text()


def test_without_the_plain_network_the_final_exit_is_plain_and_old_lines_have_no_costs(tmp_path: Path) -> None:
    runs = [with_costs("joint", 0, (0.5, 0.58), [*EARLY, (0.55, 20, 0.56)]), line("byot", 0, (0.5, 0.6))]
    (result,) = compare(read(ledger(tmp_path / "x", *runs)))
    joint, byot = result.costs
    assert result.plain == "plain = final exit of each network" and byot.seeds == [] and byot.at_accuracy == []
    assert joint.at_accuracy[0].macs is not None and joint.at_accuracy[0].macs.interval95 is None
    assert "| `byot` | 0 | – | – | – | – | – | – | – |" in markdown(result)
    (old,) = compare(read(ledger(tmp_path / "y", line("joint", 0, (0.5, 0.6)))))
    assert "MACs at plain" not in markdown(old)


def test_where_no_policy_is_as_accurate_as_the_plain_network_there_is_no_cost(tmp_path: Path) -> None:
    runs = [with_costs("joint", 0, (0.5, 0.58), EARLY), with_costs("vanilla", 0, (0.7,), [(0.7, 20, 0.7)])]
    (result,) = compare(read(ledger(tmp_path / "x", *runs)))
    assert result.costs[0].at_accuracy[0].macs is None and "| `joint` | one seed | – | – | – |" in markdown(result)
