"""Figures from analyses of runs: per exit, per epoch and per budget."""

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.papers.analysed import file_of, read
from offramp.papers.catalog import quick, training
from offramp.papers.figures import RunValues, figure_result
from offramp.papers.lines import measured
from offramp.papers.selection import figures

QUICK = quick()


def exits(*shares: float) -> list[dict[str, Any]]:
    """Analyses of exits as `offramp.analyse` gives them, as far as figures read them."""
    counts = {"both": 50, "final_only": 30, "exit_only": 5, "neither": 15}
    softmax = {"rank_means": [0.6, 0.2], "entropy_top": 0.9, "entropy": 1.5}
    last = len(shares) - 1
    return [
        {
            "name": f"exit{place + 1}",
            "accuracy": share,
            "relative_cost": 0.5,
            "relative_accuracy": share,
            "relative_ms": None,
            "softmax": softmax,
            "go_wrong": None if place == last else {"any_later": 0.12, "all_later": 0.05},
            "agreement": None if place == last else counts,
        }
        for place, share in enumerate(shares)
    ]


def test_lines_beside_the_ledger_are_read_whole(tmp_path: Path) -> None:
    blocks = [{"where": "after it", "within": 0.4, "between": 1.0}]
    name = figures()["eed-fig-4"].reduced[0]
    about = {"training": name, "protocol": QUICK.name, "seed": 3}
    values = RunValues(exits(0.5), [{"train": {}}], [{"cost": 1.0}], blocks)
    ledger = tmp_path / "results.jsonl"
    file_of(ledger).write_text(json.dumps({**about, **values._asdict()}) + "\n")
    assert read(ledger, [training(name)], QUICK) == {name: {3: values}}


def test_means_and_deviations_over_seeds() -> None:
    figure = figures()["muse-fig-6"]
    runs = {name: {0: RunValues(exits(0.4, 0.5)), 1: RunValues(exits(0.4, 0.5))} for name in figure.reduced}
    result = figure_result(figure, {}, runs, QUICK)
    assert (result.state, len(result.rows)) == ("measured", 4)
    row = result.rows[0]
    assert (row.exit, row.seeds) == ("exit1", [0, 1])
    assert row.means == pytest.approx([60, 20, 0.9, 1.5])
    assert row.deviations == pytest.approx([0, 0, 0, 0])


def test_the_final_exit_has_no_row_where_there_is_nothing_to_say_of_it() -> None:
    figure = figures()["eed-fig-2"]
    result = figure_result(figure, {}, {figure.reduced[0]: {0: RunValues(exits(0.4, 0.5))}}, QUICK)
    assert [row.exit for row in result.rows] == ["exit1"]
    assert result.rows[0].means == [5, 30, 50]


def test_accuracies_by_epoch_are_shown_at_ten_points() -> None:
    figure = figures()["eed-fig-3"]
    epochs = [
        {split: {"exits": [0.0, epoch / 100], "ensemble": epoch / 50} for split in ("train", "test")}
        for epoch in range(1, 21)
    ]
    runs = {name: {0: RunValues([], epochs)} for name in figure.reduced}
    result = figure_result(figure, {}, runs, QUICK)
    assert result.columns == ["main output, train %", "ensemble, train %", "main output, test %", "ensemble, test %"]
    assert [row.exit for row in result.rows[:10]] == [f"epoch {epoch}" for epoch in range(2, 21, 2)]
    assert result.rows[0].means == pytest.approx([2, 4, 2, 4])
    assert figure_result(figure, {}, {name: {0: RunValues([])} for name in figure.reduced}, QUICK).state == "not run"


def test_the_best_model_of_every_budget_by_method() -> None:
    figure = figures()["hdkd-fig-2-cifar-150"]

    def points(share: float, cost: float) -> list[dict[str, Any]]:
        one = {"held_out_accuracy": share, "held_out_cost": cost, "accuracy": share, "cost": cost, "top5": share + 0.2}
        return [one]

    runs = {
        name: {0: RunValues([], (), points(0.1 + place / 20, 1e6 * (1 + place % 3)))}
        for place, name in enumerate(figure.reduced)
    }
    result = figure_result(figure, {}, runs, QUICK)
    assert result.state == "measured"
    assert list(dict.fromkeys(row.training for row in result.rows)) == ["joint", "dbt", "hdkd"]
    dearest = [row for row in result.rows if row.exit == "3.0 M"]
    assert [row.means[1] for row in dearest] == pytest.approx([20, 35, 50])


def test_dissimilarities_within_and_between_classes() -> None:
    figure = figures()["eed-fig-4"]
    blocks = [{"where": "before the classifier", "within": 0.4, "between": 1.0}]
    result = figure_result(figure, {}, {figure.reduced[0]: {3: RunValues([], (), (), blocks)}}, QUICK)
    (row,) = result.rows
    assert (row.exit, row.seeds, row.means) == ("before the classifier", [3], pytest.approx([0.4, 1.0, 0.6]))


def test_accuracies_over_a_parameter_are_those_of_the_ledger(line, write) -> None:
    figure = figures()["beed-fig-2"]
    name = "c100.resnet18.beed.beed-balance-1.1"
    ledger = write([line(name, (0.1, 0.2, 0.3, 0.4), seed) for seed in (0, 1)])
    lines = measured(ledger, [training(name)], QUICK).lines
    result = figure_result(figure, lines, {}, QUICK)
    assert result.state == "measured in part; not run: the others"
    assert [row.means for row in result.rows] == [[pytest.approx(share)] for share in (10, 20, 30, 40)]
